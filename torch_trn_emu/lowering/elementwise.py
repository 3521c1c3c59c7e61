"""Rows for elementwise operators: what they become on the Vector and Scalar engines.

A recipe is a list of `pointwise.Step`s; operands are 0, 1, 2 for the tensors and -1, -2 for the
results before. To add an operator, add a line to UNARY, BINARY or TERNARY.
Sources: the functions of engines/arithmetic.py; where the engines lack one, it is composed here
(`inferred`).
"""

from collections.abc import Sequence
from math import log
from types import MappingProxyType
from typing import Any

from ..isa import Engine, Program
from .activation_steps import ACTIVATIONS
from .attributes import MADE_VALUES, READERS, Reader, made_value, rounded_down, whole
from .broadcasting import broadcast, how_it_repeats
from .call import Call, Target, TensorArg
from .draws import DRAWS, parameters, steps_of
from .loss_steps import GRADIENTS, LOSSES
from .pointwise import (
    Step,
    activation,
    constant,
    copy,
    pointwise,
    select,
    tensor_scalar,
    tensor_tensor,
)
from .quotients import QUOTIENTS

__all__ = [
    "BINARY",
    "CHOSEN",
    "TAKES_NUMBERS",
    "TERNARY",
    "UNARY",
    "elementwise",
    "flattened",
    "lower_elementwise",
]

Recipe = Sequence[Step]


def reciprocal(a: int = 0) -> Step:
    """On the Scalar engine, which is eight times as fast at it."""
    return activation("reciprocal", a)


T, S, A = tensor_tensor, tensor_scalar, activation


def _imm(op0: str, imm0: float, a: int = 0, **more: Any) -> Step:
    return S(a, op0=op0, imm0=imm0, **more)


def _pair(op0: str, imm0: float, op1: str, imm1: float, a: int = 0) -> Step:
    return S(a, op0=op0, imm0=imm0, op1=op1, imm1=imm1)


HALF_PI, LN2, LN10 = 1.5707963267948966, log(2), log(10)

# fmt: off
UNARY: MappingProxyType[str, Recipe] = MappingProxyType({
    **{name: [A(name)] for name in (
        "exp", "sigmoid", "tanh", "relu", "silu", "gelu", "erf", "log", "sin", "sqrt", "rsqrt",
        "reciprocal", "abs", "sign", "square", "mish")},
    "atan":        [A("arctan")],
    "neg":         [_imm("multiply", -1.0)],
    "cos":         [_imm("add", HALF_PI), A("sin", -1)],
    "log2":        [A("log"), _imm("multiply", 1 / LN2, -1)],
    "log10":       [A("log"), _imm("multiply", 1 / LN10, -1)],
    "log1p":       [_imm("add", 1.0), A("log", -1)],
    "exp2":        [A("exp", scale=LN2)],
    "expm1":       [A("exp"), _imm("add", -1.0, -1)],
    "erfc":        [A("erf"), _pair("multiply", -1.0, "add", 1.0, -1)],
    "log_sigmoid_forward": [A("softplus", scale=-1.0), _imm("multiply", -1.0, -1)],
    "logical_not": [_imm("equal", 0.0)],
    "bitwise_not": [_pair("multiply", -1.0, "add", -1.0)],
    "isnan":       [T("not_equal", 0, 0)],
    "isinf":       [A("abs"), _imm("equal", float("inf"), -1)],
    "isfinite":    [A("abs"), _imm("less", float("inf"), -1)],
    "floor":       rounded_down(),
    "ceil":        [whole(), T("less", -1, 0), T("add", -2, -1)],
    "round":       [whole(), copy(-1)],
    "trunc":       [A("abs"), *rounded_down(-1), A("sign"), T("multiply", -1, -2)],
    "frac":        [A("abs"), *rounded_down(-1), A("sign"), T("multiply", -1, -2),
                    T("subtract", 0, -1)],
    "relu6":       [_pair("max", 0.0, "min", 6.0)],
    "hardsigmoid": [_pair("multiply", 1 / 6, "add", 0.5), _pair("max", 0.0, "min", 1.0, -1)],
    "hardswish":   [_pair("multiply", 1 / 6, "add", 0.5), _pair("max", 0.0, "min", 1.0, -1),
                    T("multiply", 0, -1)],
    "tan":         [A("sin"), _imm("add", HALF_PI), A("sin", -1), reciprocal(-1),
                    T("multiply", -1, -4)],
    "clamp":       [_pair("max", -1.0, "min", 1.0)],
    "clamp_min":   [_imm("max", 0.0)],
    "clamp_max":   [_imm("min", 0.0)],
    "pow_scalar":  [_imm("power", 2.0)],
    "signbit":     [_imm("less", 0.0)],
    "sgn":         [A("sign")],
    "isposinf":    [_imm("equal", float("inf"))],
    "isneginf":    [_imm("equal", float("-inf"))],
    "deg2rad":     [_imm("multiply", 2 * HALF_PI / 180)],
    "rad2deg":     [_imm("multiply", 180 / (2 * HALF_PI))],
    "sinh":        [A("exp"), A("exp", scale=-1.0), T("subtract", -2, -1),
                    _imm("multiply", 0.5, -1)],
    "cosh":        [A("exp"), A("exp", scale=-1.0), T("add", -2, -1), _imm("multiply", 0.5, -1)],
    "asinh":       [A("square"), _imm("add", 1.0, -1), A("sqrt", -1), A("abs"), T("add", -1, -2),
                    A("log", -1), A("sign"), T("multiply", -1, -2)],
    "atanh":       [_imm("add", 1.0), A("log", -1), _pair("multiply", -1.0, "add", 1.0),
                    A("log", -1), T("subtract", -3, -1), _imm("multiply", 0.5, -1)],
    "asin":        [A("square"), _pair("multiply", -1.0, "add", 1.0, -1), A("rsqrt", -1),
                    T("multiply", 0, -1), A("arctan", -1)],
    "acos":        [A("square"), _pair("multiply", -1.0, "add", 1.0, -1), A("rsqrt", -1),
                    T("multiply", 0, -1), A("arctan", -1),
                    _pair("multiply", -1.0, "add", HALF_PI, -1)],
})

BINARY: MappingProxyType[str, Recipe] = MappingProxyType({
    "add":           [T("add")],
    "sub":           [T("subtract")],
    "rsub":          [T("subtract", 1, 0)],
    "mul":           [T("multiply")],
    "div":           [reciprocal(1), T("multiply", 0, -1)],
    "true_divide":   [reciprocal(1), T("multiply", 0, -1)],
    "maximum":       [T("max")],
    "minimum":       [T("min")],
    "fmax":          [T("max")],
    "fmin":          [T("min")],
    "pow":           [T("power", engine=Engine.GPSIMD)],
    "eq":            [T("equal")],
    "ne":            [T("not_equal")],
    "lt":            [T("less")],
    "le":            [T("less_equal")],
    "gt":            [T("greater")],
    "ge":            [T("greater_equal")],
    "logical_and":   [T("logical_and")],
    "logical_or":    [T("logical_or")],
    "logical_xor":   [T("logical_xor")],
    "bitwise_and":   [T("bitwise_and")],
    "bitwise_or":    [T("bitwise_or")],
    "bitwise_xor":   [T("bitwise_xor")],
    "atan2":         [reciprocal(1), T("multiply", 0, -1), A("arctan", -1),  # 0 / 0 is 0
                      T("equal", -1, -1), constant(0.0), select(-2, -3, -1),
                      _imm("less", 0.0, 1), _pair("greater_equal", 0.0, "multiply", 4 * HALF_PI),
                      _imm("add", -2 * HALF_PI, -1), T("multiply", -1, -3), T("add", -1, -5)],
    "logaddexp":     [T("subtract"), A("abs", -1), A("softplus", -1, scale=-1.0), T("max"),
                      T("add", -1, -2)],
    "copysign":      [_pair("greater_equal", 0.0, "multiply", 2.0, 1), _imm("add", -1.0, -1),
                      A("abs"), T("multiply", -1, -2)],
    "heaviside":     [_imm("greater", 0.0), _imm("equal", 0.0), T("multiply", -1, 1),
                      T("add", -1, -3)],
    "clamp_min":     [T("max")],
    "clamp_max":     [T("min")],
    "hypot":         [T("multiply", 0, 0), T("multiply", 1, 1), T("add", -1, -2), A("sqrt", -1)],
    "xlogy":         [A("log", 1), T("multiply", 0, -1), _imm("equal", 0.0), constant(0.0),
                      select(-2, -1, -3)],
    "gelu_backward":       [A("gelu_dx", 1), T("multiply", 0, -1)],
    "silu_backward":       [A("silu_dx", 1), T("multiply", 0, -1)],
    "sigmoid_backward":    [_pair("multiply", -1.0, "add", 1.0, 1), T("multiply", 1, -1),
                            T("multiply", 0, -1)],
    "tanh_backward":       [A("square", 1), _pair("multiply", -1.0, "add", 1.0, -1),
                            T("multiply", 0, -1)],
    "hardswish_backward":  [_pair("multiply", 1 / 3, "add", 0.5, 1), _imm("greater", -3.0, 1),
                            T("multiply", -1, -2), _imm("greater", 3.0, 1), constant(1.0),
                            select(-2, -1, -3), T("multiply", 0, -1)],
    "hardsigmoid_backward": [A("abs", 1), _pair("less", 3.0, "multiply", 1 / 6, -1),
                             T("multiply", 0, -1)],
    "log_sigmoid_backward": [A("sigmoid", 1, scale=-1.0), T("multiply", 0, -1)],
    "native_dropout_backward": [_imm("multiply", 2.0, 1), T("multiply", 0, -1)],
    "masked_fill":         [constant(0.0), select(1, -1, 0)],
})

TERNARY: MappingProxyType[str, Recipe] = MappingProxyType({
    "addcmul":       [T("multiply", 1, 2), T("add", 0, -1)],
    "addcdiv":       [reciprocal(2), T("multiply", 1, -1), T("add", 0, -1)],
    "lerp":          [T("subtract", 1, 0), T("multiply", 2, -1), T("add", 0, -1)],
    "where":         [select(0, 1, 2)],
    "clamp_tensor":  [T("max", 0, 1), T("min", -1, 2)],
})

# Recipes by another name than the operator's.
CHOSEN = frozenset(("clamp_tensor", "masked_fill", "pow_scalar"))
# fmt: on


def elementwise(
    name: str, steps: Recipe, operands: Sequence[TensorArg], out: TensorArg, target: Target
) -> Program:
    """`steps` over operands of `out`'s size or broadcast to it."""
    dtypes = [t.dtype for t in operands]
    computed = "float32" if out.dtype == "bool" and steps else out.dtype
    recipe = [*steps[:-1], _as(steps[-1], out.dtype)] if steps else []
    recipe = [s if s.dtype else _as(s, computed) for s in recipe]
    if not recipe and dtypes and dtypes[0] != out.dtype:
        recipe = [_as(copy(), out.dtype)]
    kinds = [how_it_repeats(t, out) for t in operands]
    if all(k in ("full", "other", "one") for k in kinds):
        single = [k for k, kind in enumerate(kinds) if kind == "one"]
        return pointwise(
            name, out.numel, dtypes, out.dtype, recipe,
            single=single, chip=target.chip, cores=target.cores,
        )  # fmt: skip
    return broadcast(name, recipe, operands, kinds, out, target)


def flattened(
    name: str, steps: Recipe, operands: Sequence[TensorArg], out: TensorArg, target: Target
) -> Program:
    """`steps` over tensors of one size, whatever their shapes."""
    same = [TensorArg(t.torch_dtype, (out.numel,), (1,)) for t in operands]
    return elementwise(name, steps, same, out, target)


def _as(s: Step, dtype: str) -> Step:
    return Step(emit=s.emit, reads=s.reads, dtype=dtype)


# --- from calls ----------------------------------------------------------------------------------


def _scalars(call: Call) -> list[TensorArg]:
    return [t for t in call.tensors if t.numel == 1 and not t.shape and t.on_host]


def _device(call: Call) -> list[TensorArg]:
    scalars = _scalars(call)
    return [t for t in call.tensors if t not in scalars]


# A host scalar is an immediate: one instruction, whatever its value.
_WITH_SCALAR = MappingProxyType(
    {
        "add": "add", "sub": "subtract", "rsub": "subtract", "mul": "multiply", "div": "multiply",
        "true_divide": "multiply", "maximum": "max", "minimum": "min", "pow": "power",
        "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
        "ge": "greater_equal", "logical_and": "logical_and", "logical_or": "logical_or",
        "logical_xor": "logical_xor", "bitwise_and": "bitwise_and", "bitwise_or": "bitwise_or",
        "bitwise_xor": "bitwise_xor",
    }
)  # fmt: skip


def _immediate(call: Call) -> float:
    """The scalar, inverted for a division; 1 where it is a tensor, whose value is not known."""
    value = call.argument(1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 1.0
    return 1.0 / value if value and call.name in ("div", "true_divide") else float(value)


TAKES_NUMBERS = frozenset((*READERS, *QUOTIENTS, *ACTIVATIONS, *LOSSES, *GRADIENTS))
_BY_CALL: MappingProxyType[str, Reader] = MappingProxyType(
    {**READERS, **QUOTIENTS, **ACTIVATIONS, **LOSSES, **GRADIENTS, **dict.fromkeys(DRAWS, steps_of)}
)


def recipe_of(call: Call, operands: Sequence[TensorArg]) -> Recipe | None:
    """The steps for a call, by its name and number of tensors; None if there is no row."""
    name, count = call.name, len(operands)
    if name == "gelu" and "tanh" in call.arguments:
        return [A("gelu_apprx_tanh")]
    if name in _BY_CALL and (found := _BY_CALL[name](call, operands)):
        return found
    if name in MADE_VALUES:
        return [constant(made_value(call))]
    if count == 1 and name in _WITH_SCALAR:
        return [_imm(_WITH_SCALAR[name], _immediate(call))]
    if name in ("add", "sub") and count == 2 and call.argument(2, 1) != 1:
        return [_imm("multiply", float(call.argument(2)), 1), T(BINARY_OP[name], 0, -1)]
    if name == "lerp" and count == 2:
        weight = float(call.argument(2, 0.5))
        return [T("subtract", 1, 0), _imm("multiply", weight, -1), T("add", 0, -1)]
    if name in ("addcmul", "addcdiv") and count == 3 and call.argument(3, 1) != 1:
        *product, add = TERNARY[name]
        return [*product, _imm("multiply", float(call.argument(3)), -1), add]
    if name in ("where", "masked_fill") and count == 2:
        return [constant(0.0), select(0, 1, -1)] if name == "where" else BINARY[name]
    if name == "masked_fill" and count == 3:
        return [select(1, 2, 0)]
    if name in ("clamp", "clamp_min", "clamp_max") and count == 1:
        return _clamped(call)
    if name == "clamp" and count > 1:
        bound = "min" if call.argument(1) is None else "max"
        return TERNARY["clamp_tensor"] if count == 3 else [T(bound, 0, 1)]
    return {1: UNARY, 2: BINARY, 3: TERNARY}.get(count, UNARY).get(name)


def _clamped(call: Call) -> Recipe:
    """One pass for either bound, or both."""
    low, high = (call.argument(1), call.argument(2)) if call.name == "clamp" else (None, None)
    low = call.argument(1) if call.name == "clamp_min" else low
    high = call.argument(1) if call.name == "clamp_max" else high
    if low is None and high is None:
        return UNARY[call.name]
    if low is None or high is None:
        op, bound = ("min", high) if low is None else ("max", low)
        return [_imm(op, float(bound))]  # type: ignore[arg-type]  # one of them is given
    return [_pair("max", float(low), "min", float(high))]


BINARY_OP = MappingProxyType({"add": "add", "sub": "subtract"})


def lower_elementwise(call: Call, target: Target) -> tuple[Program, ...]:
    """An elementwise call; tensors that steps make on the core are not loaded."""
    if not call.out.numel:
        return ()
    operands = parameters(call) if call.name in DRAWS else _device(call)
    operands = [] if call.name in MADE_VALUES else operands
    steps = recipe_of(call, operands)
    if steps is None:
        raise KeyError(f"no recipe for {call.op} of {len(operands)} tensors")
    return (elementwise(call.name, steps, operands, call.out, target),)
