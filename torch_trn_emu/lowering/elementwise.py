"""Rows for elementwise operators: what they become on the Vector and Scalar engines.

A recipe is a list of `pointwise.Step`s; operands are 0, 1, 2 for the tensors and -1, -2 for the
results before. To add an operator, add a line to UNARY, BINARY, TERNARY or STEPS.
Sources: the functions of engines/arithmetic.py; where the engines lack one, it is composed here
(`inferred`).
"""

from collections.abc import Sequence
from math import log
from types import MappingProxyType
from typing import Any

from ..isa import Access, Builder, Engine, Program
from .attributes import MADE_VALUES, READERS, made_value, rounded_down, whole
from .broadcasting import broadcast, how_it_repeats
from .call import Call, Target, TensorArg
from .pointwise import Step, activation, copy, pointwise, tensor_scalar, tensor_tensor

__all__ = [
    "BINARY",
    "SIMPLIFIED",
    "STEPS",
    "TERNARY",
    "UNARY",
    "constant",
    "elementwise",
    "flattened",
    "lower_elementwise",
]

Recipe = Sequence[Step]


def _emitting(opcode: str, engine: Engine, reads: tuple[int, ...], **attributes: Any) -> Step:
    def emit(b: Builder, to: Access, operands: Sequence[Access]) -> None:
        b.emit(opcode, to, *operands, engine=engine, **attributes)

    return Step(emit=emit, reads=reads)


def constant(value: float) -> Step:
    """Every element is `value`."""
    return _emitting("memset", Engine.VECTOR, (), value=value)


def select(predicate: int, on_true: int, on_false: int) -> Step:
    """`predicate ? on_true : on_false`."""
    return _emitting("select", Engine.VECTOR, (predicate, on_true, on_false))


def random_bits() -> Step:
    """Uniform bits, whose quality the price does not see."""
    return _emitting("rng", Engine.VECTOR, (), seed=1)


def drop(data: int, random: int, threshold: float) -> Step:
    """`data` where `random` reaches the threshold, else 0."""
    return _emitting("dropout", Engine.VECTOR, (data, random), threshold=threshold)


def iota() -> Step:
    return _emitting("iota", Engine.GPSIMD, (), channel=0, step=1, base=0)


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
        "reciprocal", "abs", "sign", "square", "softplus", "mish")},
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
    "hardtanh":    [_pair("max", -1.0, "min", 1.0)],
    "relu6":       [_pair("max", 0.0, "min", 6.0)],
    "hardsigmoid": [_pair("multiply", 1 / 6, "add", 0.5), _pair("max", 0.0, "min", 1.0, -1)],
    "hardswish":   [_pair("multiply", 1 / 6, "add", 0.5), _pair("max", 0.0, "min", 1.0, -1),
                    T("multiply", 0, -1)],
    "leaky_relu":  [_imm("multiply", 0.01), T("max", 0, -1)],
    "elu":         [_imm("min", 0.0), A("exp", -1), _pair("add", -1.0, "multiply", 1.0, -1),
                    A("relu"), T("add", -1, -2)],
    "threshold":   [_imm("greater", 0.0), T("multiply", 0, -1)],
    "tan":         [A("sin"), _imm("add", HALF_PI), A("sin", -1), reciprocal(-1),
                    T("multiply", -1, -4)],
    "clamp":       [_pair("max", -1.0, "min", 1.0)],
    "clamp_min":   [_imm("max", 0.0)],
    "clamp_max":   [_imm("min", 0.0)],
    "pow_scalar":  [_imm("power", 2.0)],
    "signbit":     [_imm("less", 0.0)],
})

BINARY: MappingProxyType[str, Recipe] = MappingProxyType({
    "add":           [T("add")],
    "sub":           [T("subtract")],
    "rsub":          [T("subtract", 1, 0)],
    "mul":           [T("multiply")],
    "div":           [reciprocal(1), T("multiply", 0, -1)],
    "true_divide":   [reciprocal(1), T("multiply", 0, -1)],
    "floor_divide":  [reciprocal(1), T("multiply", 0, -1), copy(-1), copy(-1)],
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
    "remainder":     [reciprocal(1), T("multiply", 0, -1), copy(-1), T("multiply", 1, -1),
                      T("subtract", 0, -1)],
    "fmod":          [reciprocal(1), T("multiply", 0, -1), copy(-1), T("multiply", 1, -1),
                      T("subtract", 0, -1)],
    "atan2":         [reciprocal(1), T("multiply", 0, -1), A("arctan", -1), _imm("less", 0.0, 1),
                      T("add", -1, -2)],
    "hypot":         [T("multiply", 0, 0), T("multiply", 1, 1), T("add", -1, -2), A("sqrt", -1)],
    "xlogy":         [A("log", 1), T("multiply", 0, -1), _imm("equal", 0.0), constant(0.0),
                      select(-2, -1, -3)],
    "mse_loss":      [T("subtract"), A("square", -1)],
    "l1_loss":       [T("subtract"), A("abs", -1)],
    "gelu_backward":       [A("gelu_dx", 1), T("multiply", 0, -1)],
    "silu_backward":       [A("silu_dx", 1), T("multiply", 0, -1)],
    "sigmoid_backward":    [_pair("multiply", -1.0, "add", 1.0, 1), T("multiply", 1, -1),
                            T("multiply", 0, -1)],
    "tanh_backward":       [A("square", 1), _pair("multiply", -1.0, "add", 1.0, -1),
                            T("multiply", 0, -1)],
    "threshold_backward":  [_imm("greater", 0.0, 1), T("multiply", 0, -1)],
    "relu_backward":       [_imm("greater", 0.0, 1), T("multiply", 0, -1)],
    "hardtanh_backward":   [A("abs", 1), _imm("less", 1.0, -1), T("multiply", 0, -1)],
    "hardswish_backward":  [_pair("multiply", 1 / 3, "add", 0.5, 1), _imm("greater", -3.0, 1),
                            T("multiply", -1, -2), _imm("greater", 3.0, 1), constant(1.0),
                            select(-2, -1, -3), T("multiply", 0, -1)],
    "hardsigmoid_backward": [A("abs", 1), _pair("less", 3.0, "multiply", 1 / 6, -1),
                             T("multiply", 0, -1)],
    "leaky_relu_backward": [_imm("greater", 0.0, 1), _pair("multiply", 0.99, "add", 0.01, -1),
                            T("multiply", 0, -1)],
    "elu_backward":        [_imm("min", 0.0, 1), A("exp", -1), T("multiply", 0, -1)],
    "softplus_backward":   [A("sigmoid", 1), T("multiply", 0, -1)],
    "mish_backward":       [A("mish", 1), A("sigmoid", 1), T("multiply", -1, -2),
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
    "mse_loss_backward": [T("subtract", 1, 2), _imm("multiply", 2.0, -1), T("multiply", 0, -1)],
    "smooth_l1_loss_backward": [T("subtract", 1, 2), _pair("max", -1.0, "min", 1.0, -1),
                                T("multiply", 0, -1)],
})

# Quotients that are rounded, choices of attributes, what is composed of tables: the right number of
# passes, but not held to torch's values.
SIMPLIFIED = frozenset((
    "atan2", "clamp_tensor", "elu_backward", "floor_divide", "fmod", "masked_fill",
    "mish_backward", "relu_backward", "remainder", "tan",
))  # fmt: skip


def _alike(names: Sequence[str], recipe: Recipe) -> dict[str, Recipe]:
    return dict.fromkeys(names, recipe)


# Of no tensor: made on the core.
STEPS: MappingProxyType[str, Recipe] = MappingProxyType({
    **_alike(tuple(MADE_VALUES), [constant(0.0)]),
    **_alike(("arange", "linspace", "range", "eye", "triu_indices", "tril_indices"),
                    [iota()]),
    **_alike(("uniform", "rand", "rand_like", "random", "randint", "randint_like",
                     "bernoulli"),
                    [random_bits(), _pair("multiply", 2.0**-32, "add", 0.0, -1)]),
    **_alike(("normal", "randn", "randn_like", "log_normal", "exponential", "cauchy",
                     "geometric"),  # Box and Muller's method
                    [random_bits(), _imm("multiply", 2.0**-32, -1), A("log", -1),
                     A("sqrt", -1, scale=-2.0), random_bits(), A("sin", -1),
                     T("multiply", -1, -3)]),
})
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


def recipe_of(call: Call, operands: Sequence[TensorArg]) -> Recipe | None:
    """The steps for a call, by its name and number of tensors; None if there is no row."""
    name, count = call.name, len(operands)
    if name == "gelu" and "tanh" in call.arguments:
        return [A("gelu_apprx_tanh")]
    if name in READERS and (found := READERS[name](call, operands)):
        return found
    if name in MADE_VALUES:
        return [constant(made_value(call))]
    if name in STEPS and (count == 0 or name not in UNARY):
        return STEPS[name]
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
        return TERNARY["clamp_tensor"] if count == 3 else [T("max", 0, 1)]
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
    operands = [] if call.name in STEPS else _device(call)
    steps = recipe_of(call, operands)
    if steps is None:
        raise KeyError(f"no recipe for {call.op} of {len(operands)} tensors")
    return (elementwise(call.name, steps, operands, call.out, target),)
