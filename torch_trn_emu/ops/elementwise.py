"""Rows for elementwise operators: what they become on the Vector and Scalar engines.

A recipe is a list of `pointwise.Step`s; operands are 0, 1, 2 for the tensors and -1, -2 for the
results before. To add an operator, add a line to UNARY, BINARY or TERNARY.
Sources: the functions of engines/arithmetic.py; where the engines lack one, it is composed here
(`inferred`).
"""

from collections.abc import Sequence
from dataclasses import replace
from math import copysign, inf, log
from types import MappingProxyType
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import expanded, labelled
from ..errors import Unimplemented
from ..isa import Engine, Program
from ..kernels.broadcasting import alike, broadcast, how_it_repeats
from ..kernels.pointwise import (
    Step,
    activation,
    constant,
    copy,
    pointwise,
    select,
    tensor_scalar,
    tensor_tensor,
)
from .activations import ACTIVATIONS
from .attributes import (
    MADE_VALUES,
    READERS,
    Reader,
    fills_from,
    made_value,
    rounded_down,
    where_it_rounds,
    whole,
)
from .loss_steps import GRADIENTS, LOSSES
from .random import DRAWS, parameters, steps_of
from .rounded_division import QUOTIENTS

__all__ = [
    "BINARY",
    "CHOSEN",
    "TERNARY",
    "UNARY",
    "conversion",
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
LARGEST = 1.5e38  # twice it is finite
TRUNCATED = (A("abs"), *rounded_down(-1), A("sign"), T("multiply", -1, -2))


def _is_negative(a: int) -> list[Step]:
    """Whether the sign is: of -0 too, whose reciprocal is below 0. A NaN counts as positive."""
    return [reciprocal(a), _imm("less", 0.0, -1), _imm("less", 0.0, a), T("max", -1, -2)]


def _or_the_other(op: str) -> list[Step]:
    """`max` or `min` of two numbers, of which one may be NaN."""
    return [T("equal", 0, 0), select(-1, 0, 1), T("equal", 1, 1), select(-1, 1, -2), T(op, -3, -1)]


# The smaller over the larger magnitude, so that no square overflows; an infinity is one whatever
# the other is.
HYPOTENUSE = (
    A("abs", 0), A("abs", 1), T("max", -2, -1), T("min", -3, -2), reciprocal(-2),
    T("multiply", -2, -1), T("equal", -1, -1), constant(0.0), select(-2, -3, -1),  # 0 / 0
    A("square", -1), _imm("add", 1.0, -1), A("sqrt", -1), T("multiply", -1, -10),
    _imm("equal", inf, -13), _imm("equal", inf, -13), T("max", -1, -2), constant(inf),
    select(-2, -1, -5),
)  # fmt: skip
# Of operands that are finite, and not NaN; half a turn is added on the left, with y's sign.
ARCTANGENT = (
    _pair("max", -LARGEST, "min", LARGEST, 1), _pair("max", -LARGEST, "min", LARGEST, 0),
    reciprocal(-2), T("multiply", -2, -1), T("equal", -1, -1), constant(0.0),
    select(-2, -3, -1),  # 0 / 0
    A("arctan", -1), _imm("less", 0.0, -6),
    *_is_negative(0), _pair("multiply", -4 * HALF_PI, "add", 2 * HALF_PI, -1),
    T("multiply", -1, -6), T("add", -1, -8),
    T("add", -15, -16), _imm("multiply", 0.0, -1), T("add", -1, -3),  # NaN where one is
)  # fmt: skip

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
    "floor":       where_it_rounds(rounded_down()),
    "ceil":        where_it_rounds([whole(), T("less", -1, 0), T("add", -2, -1)]),
    "round":       where_it_rounds([whole(), copy(-1)]),
    "trunc":       where_it_rounds(TRUNCATED),
    "frac":        [*where_it_rounds(TRUNCATED), T("subtract", 0, -1)],
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
    "signbit":     _is_negative(0),
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
    "fmax":          _or_the_other("max"),
    "fmin":          _or_the_other("min"),
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
    "atan2":         ARCTANGENT,
    "logaddexp":     [T("subtract"), T("equal", -1, -1), constant(0.0),
                      select(-2, -3, -1),  # inf - inf
                      A("abs", -1), A("softplus", -1, scale=-1.0), T("max"), T("add", -1, -2)],
    "copysign":      [*_is_negative(1), _pair("multiply", -2.0, "add", 1.0, -1), A("abs"),
                      T("multiply", -1, -2)],
    "heaviside":     [_imm("greater", 0.0), _imm("equal", 0.0), select(-1, 1, -2)],
    "clamp_min":     [T("max")],
    "clamp_max":     [T("min")],
    "hypot":         HYPOTENUSE,
    "xlogy":         [A("log", 1), T("multiply", 0, -1), _imm("equal", 0.0), T("equal", 1, 1),
                      T("multiply", -1, -2), constant(0.0), select(-2, -1, -5)],
    "gelu_backward":       [A("gelu_dx", 1), T("multiply", 0, -1)],
    "silu_backward":       [A("silu_dx", 1), T("multiply", 0, -1)],
    "sigmoid_backward":    [_pair("multiply", -1.0, "add", 1.0, 1), T("multiply", 1, -1),
                            T("multiply", 0, -1)],
    "tanh_backward":       [A("square", 1), _pair("multiply", -1.0, "add", 1.0, -1),
                            T("multiply", 0, -1)],
    "hardswish_backward":  [_pair("multiply", 1 / 3, "add", 0.5, 1), T("multiply", 0, -1),
                            constant(0.0), _imm("less_equal", -3.0, 1), select(-1, -2, -3),
                            _imm("greater_equal", 3.0, 1), select(-1, 0, -2)],
    "hardsigmoid_backward": [A("abs", 1), _imm("less", 3.0, -1), _imm("multiply", 1 / 6),
                             constant(0.0), select(-3, -2, -1)],
    "log_sigmoid_backward": [A("sigmoid", 1, scale=-1.0), T("multiply", 0, -1)],
    "native_dropout_backward": [_imm("multiply", 2.0, 1), T("multiply", 0, -1)],
})

TERNARY: MappingProxyType[str, Recipe] = MappingProxyType({
    "addcmul":       [T("multiply", 1, 2), T("add", 0, -1)],
    "addcdiv":       [reciprocal(2), T("multiply", 1, -1), T("add", 0, -1)],
    "lerp":          [T("subtract", 1, 0), T("multiply", 2, -1), T("add", 0, -1)],
    "clamp_tensor":  [T("max", 0, 1), T("min", -1, 2)],
})

# Recipes by another name than the operator's.
CHOSEN = frozenset(("clamp_tensor", "pow_scalar"))
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
        *first, last = conversion(dtypes[0], out.dtype) or [copy()]
        recipe = [*(_as(s, s.dtype or "float32") for s in first), _as(last, out.dtype)]
    kinds = alike([how_it_repeats(t, out) for t in operands], operands, out)
    if all(k in ("full", "other", "one") for k in kinds):
        single = [k for k, kind in enumerate(kinds) if kind == "one"]
        program = pointwise(
            name, out.numel, dtypes, out.dtype, recipe,
            single=single, chip=target.chip, cores=target.cores,
        )  # fmt: skip
    else:
        program = broadcast(name, recipe, operands, kinds, out, target)
    loaded = {
        f"in{k}": expanded(t, out.shape) if kind == "other" else t
        for k, (t, kind) in enumerate(zip(operands, kinds, strict=True))
    }
    return labelled(program, {**loaded, "out": out})


def conversion(source: str, to: str) -> Recipe:
    """The steps from one dtype to another; none where a copy converts as torch does.

    A copy rounds to whole numbers, where torch truncates; a truth value says if a number is not 0.
    """
    if source == to:
        return []
    if to == "bool":
        return [S(0, op0="not_equal", imm0=0.0)]
    if "float" in source and "int" in to:
        return [*where_it_rounds(TRUNCATED), copy(-1)]
    return []


def flattened(
    name: str, steps: Recipe, operands: Sequence[TensorArg], out: TensorArg, target: Target
) -> Program:
    """`steps` over tensors of one size, whatever their shapes."""
    same = [TensorArg(t.torch_dtype, (out.numel,), (1,), views=t.views) for t in operands]
    return elementwise(name, steps, same, out, target)


def _as(s: Step, dtype: str) -> Step:
    return replace(s, dtype=dtype)


# --- from calls ----------------------------------------------------------------------------------


def _device(call: Call) -> list[TensorArg]:
    return [t for t in call.tensors if _is_operand(t)]


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


# Powers of floating-point numbers that are another instruction, with the same results.
_POWERS: MappingProxyType[float, Recipe] = MappingProxyType(
    {1.0: [_imm("multiply", 1.0)], 2.0: [A("square")]}
)


def _number(value: Any, op: str) -> float:
    """A number of the call; 1 where it is a tensor of the host, whose value is data."""
    if not isinstance(value, (bool, int, float)):
        return 1.0
    return int(value) if op.startswith("bitwise") else float(value)


def _with_number(call: Call) -> Recipe:
    """A tensor and a number, in the order of the call: `alpha` scales the second of them."""
    op = _WITH_SCALAR[call.name]
    first = isinstance(call.argument(0), TensorArg)
    number = _number(call.argument(1 if first else 0), op)
    alpha = float(call.argument(2, 1)) if call.name in ("add", "sub") else 1.0
    if call.name in ("div", "true_divide"):
        # The engines multiply by the reciprocal; that of a zero is an infinity of its sign.
        inverse = 1.0 / number if number else copysign(inf, number)
        return [_imm(op, inverse)] if first else [reciprocal(0), _imm(op, number, -1)]
    if op == "power" and first and "float" in call.tensors[0].dtype and number in _POWERS:
        return _POWERS[number]
    if first:
        return [_imm(op, number if alpha == 1 else number * alpha)]
    if call.name in ("add", "sub"):
        return [_pair("multiply", alpha if op == "add" else -alpha, "add", number)]
    return [S(0, op0=op, imm0=number, reverse0=True)]


def _chosen(call: Call, operands: Sequence[TensorArg]) -> Recipe:
    """`where` and `masked_fill`: (mask, value where it holds, value elsewhere), numbers or tensors.

    The value of a tensor of the host is data: 0 stands for it.
    """
    mask, on_true, on_false = (0, 1, 2) if call.name == "where" else (1, 2, 0)
    tensors = [k for k in range(3) if _is_operand(call.argument(k))]
    numbers = [k for k in (on_true, on_false) if k not in tensors]
    steps = [constant(_value(call.argument(k))) for k in numbers]

    def read(k: int) -> int:
        if k not in tensors and k not in numbers:
            raise KeyError(f"{call.name} of a tensor of the host")
        return tensors.index(k) if k in tensors else numbers.index(k) - len(numbers)

    return [*steps, select(read(mask), read(on_true), read(on_false))]


def _is_operand(value: Any) -> bool:
    """Whether an argument is a tensor that the program loads."""
    return isinstance(value, TensorArg) and not (value.on_host and not value.shape)


def _value(value: Any) -> float:
    return float(value) if isinstance(value, (bool, int, float)) else 0.0


_BY_CALL: MappingProxyType[str, Reader] = MappingProxyType(
    {**READERS, **QUOTIENTS, **ACTIVATIONS, **LOSSES, **GRADIENTS, **dict.fromkeys(DRAWS, steps_of)}
)


def recipe_of(call: Call, operands: Sequence[TensorArg]) -> Recipe | None:
    """The steps for a call, by its name and number of tensors; None if there is no row.

    Raises Unimplemented for a number or flag that the recipe does not stand for.
    """
    call = _of_truth_values(call)
    name, count = call.name, len(operands)
    if name in _BY_CALL and (found := _BY_CALL[name](call, operands)):
        return found
    if name in MADE_VALUES:
        return [copy(count - 1)] if fills_from(call) else [constant(made_value(call))]
    if name in ("where", "masked_fill"):
        return _chosen(call, operands)
    if count == 1 and name in _WITH_SCALAR:
        return _with_number(call)
    if name in ("add", "sub") and count == 2 and call.argument(2, 1) != 1:
        return [_imm("multiply", float(call.argument(2)), 1), T(_WITH_SCALAR[name], 0, -1)]
    if name in ("addcmul", "addcdiv") and count == 3 and call.argument(3, 1) != 1:
        *product, add = TERNARY[name]
        return [*product, _imm("multiply", float(call.argument(3)), -1), add]
    if name in ("clamp", "clamp_min", "clamp_max") and count == 1:
        return _clamped(call)
    if name == "clamp" and count > 1:
        bound = "min" if call.argument(1) is None else "max"
        return TERNARY["clamp_tensor"] if count == 3 else [T(bound, 0, 1)]
    found = {1: UNARY, 2: BINARY, 3: TERNARY}.get(count, UNARY).get(name)
    if found is not None:
        _refuse_other_numbers(call)
    return found


def _of_truth_values(call: Call) -> Call:
    """Bits of truth values are the values, as the engines compare them: 1 and 0."""
    of_bits = call.name.startswith("bitwise_")
    if not of_bits or any(t.dtype != "bool" for t in (*call.tensors, *call.outputs)):
        return call
    return replace(call, op=call.op.replace("bitwise_", "logical_"))


# Numbers and flags that a recipe by name stands for, where it takes none from the call.
_STANDS_FOR: MappingProxyType[str, tuple[Any, ...]] = MappingProxyType(
    {"gelu": ("none",), "gelu_backward": ("none",), "add": (1,), "sub": (1,), "addcmul": (1,),
     "addcdiv": (1,)}
)  # fmt: skip
_APPROXIMATIONS = ("none", "tanh")  # strings that choose what is computed
_COPIES = frozenset("clone copy _to_copy _copy_from contiguous".split())  # take dtypes and layouts


def _refuse_other_numbers(call: Call) -> None:
    given = tuple(a for a in call.arguments if isinstance(a, (int, float)) or a in _APPROXIMATIONS)
    if given and call.name not in _COPIES and given != _STANDS_FOR.get(call.name):
        raise Unimplemented(
            f"{call.op}: the program does not compute it for {given} (ops/elementwise.py)"
        )


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


# Tensors that a recipe reads of those that a call has: what the forward pass left is not needed.
_READS = MappingProxyType({"log_sigmoid_backward": 2})


def lower_elementwise(call: Call, target: Target) -> tuple[Program, ...]:
    """An elementwise call; tensors that steps make on the core are not loaded."""
    if not call.out.numel:
        return ()
    operands = parameters(call) if call.name in DRAWS else _device(call)[: _READS.get(call.name)]
    if call.name in MADE_VALUES:
        operands = operands[-1:] if fills_from(call) else []
    steps = recipe_of(call, operands)
    if steps is None:
        raise KeyError(f"no recipe for {call.op} of {len(operands)} tensors")
    return (elementwise(call.name, steps, operands, call.out, target),)
