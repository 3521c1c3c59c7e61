"""Rows for elementwise operators: what they become on the Vector and Scalar engines.

To add an operator, add a line to UNARY, BINARY or TERNARY: a formula of its operands
(`formulas.py`). Sources: the functions of engines/arithmetic.py; where the engines lack one, it is
composed here (`inferred`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import copysign, inf, log
from operator import methodcaller
from types import MappingProxyType
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import expanded, labelled
from ..errors import Unimplemented
from ..isa import Engine, Program
from ..kernels.broadcasting import alike, broadcast, how_it_repeats
from ..kernels.pointwise import Step, copy, pointwise
from .activations import ACTIVATIONS, Reader
from .attributes import MADE_VALUES, READERS, fills_from, made_value
from .formulas import Made, Value, filled, finished, steps_of
from .loss_steps import GRADIENTS, LOSSES
from .op import Lowered
from .random import DRAWS, draw, parameters
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

Formula = Callable[..., Value]
HALF_PI, LN2, LN10 = 1.5707963267948966, log(2), log(10)


def _is_negative(x: Value) -> Value:
    """Whether the sign is: of -0 too, whose reciprocal is below 0. A NaN counts as positive."""
    inverse = x.reciprocal() < 0.0
    return (x < 0.0).maximum(inverse)


def _asinh(x: Value) -> Value:
    root = (x.square() + 1.0).sqrt()
    magnitude = (x.abs() + root).log()
    return x.sign() * magnitude


def _arcsine(x: Value) -> Value:
    return (x * (1.0 - x.square()).rsqrt()).arctan()


def _hardsigmoid(x: Value) -> Value:
    return (x / 6 + 0.5).between(0.0, 1.0)


def _ceiling(x: Value) -> Value:
    whole = x.nearest()
    return whole + (whole < x)


def _cosine(x: Value) -> Value:
    """Of half the angle, which is exact: x + pi / 2 is not, the less the larger x is."""
    return x.sin(0.5).square() * -2.0 + 1.0


def _tangent(x: Value) -> Value:
    sine = x.sin()
    return _cosine(x).reciprocal() * sine


def _or_the_other(op: str, x: Value, y: Value) -> Value:
    """`max` or `min` of two numbers, of which one may be NaN."""
    first = x.equals(x).where(x, y)
    return first.by(op, y.equals(y).where(y, first))


def _hypotenuse(x: Value, y: Value) -> Value:
    """The smaller over the larger magnitude, so that no square overflows; an infinity is one
    whatever the other is.
    """
    a, b = x.abs(), y.abs()
    large, small = a.maximum(b), a.minimum(b)
    ratio = small / large
    ratio = ratio.equals(ratio).where(ratio, 0.0)  # 0 / 0
    length = (ratio.square() + 1.0).sqrt() * large
    first = a.equals(inf)
    return b.equals(inf).maximum(first).where(inf, length)


def _arctangent(y: Value, x: Value) -> Value:
    """Half a turn is added on the left, with y's sign. Where the ratio has no value the operands
    are both 0, both infinite, or NaN: cut to -1 .. 1 they have that of their signs.
    """
    inverse = x.reciprocal()
    ratio = y * inverse
    signs = y.between(-1.0, 1.0) * x.between(-1.0, 1.0)
    angle = ratio.equals(ratio).where(ratio, signs).arctan()
    left = (inverse < 0.0).maximum(x < 0.0)  # the reciprocal tells -0, not -inf
    return (_is_negative(y) * (-4 * HALF_PI) + 2 * HALF_PI) * left + angle


def _logaddexp(x: Value, y: Value) -> Value:
    apart = x - y
    apart = apart.equals(apart).where(apart, 0.0)  # inf - inf
    more = apart.abs().softplus(-1.0)
    return x.maximum(y) + more


def _copysign(x: Value, y: Value) -> Value:
    sign = _is_negative(y) * -2.0 + 1.0
    return x.abs() * sign


def _heaviside(x: Value, y: Value) -> Value:
    positive = x > 0.0
    return x.equals(0.0).where(y, positive)


def _xlogy(x: Value, y: Value) -> Value:
    product = x * y.log()
    zero = x.equals(0.0)
    return (y.equals(y) * zero).where(0.0, product)


def _hardswish_gradient(g: Value, x: Value) -> Value:
    inside = g * (x * (1 / 3) + 0.5)
    zero = filled(x.made, 0.0)
    inside = (x <= -3.0).where(zero, inside)
    return (x >= 3.0).where(g, inside)


# Of two tensors, or of a tensor and a number: a host scalar is an immediate, whatever its value.
_OPERATIONS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "maximum": "max", "minimum": "min",
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal", "logical_and": "logical_and", "logical_or": "logical_or",
    "logical_xor": "logical_xor", "bitwise_and": "bitwise_and", "bitwise_or": "bitwise_or",
    "bitwise_xor": "bitwise_xor",
}  # fmt: skip
_WITH_SCALAR = {
    **_OPERATIONS, "rsub": "subtract", "div": "multiply", "true_divide": "multiply", "pow": "power",
}  # fmt: skip

# fmt: off
UNARY: MappingProxyType[str, Formula] = MappingProxyType({
    **{name: methodcaller(name) for name in (
        "exp", "sigmoid", "tanh", "relu", "silu", "gelu", "erf", "log", "sin", "sqrt", "rsqrt",
        "reciprocal", "abs", "sign", "square", "mish")},
    "atan":        methodcaller("arctan"),
    "neg":         lambda x: -x,
    "cos":         _cosine,
    "log2":        lambda x: x.log() / LN2,
    "log10":       lambda x: x.log() / LN10,
    "log1p":       lambda x: (x + 1.0).log(),
    "exp2":        lambda x: x.exp(LN2),
    "expm1":       lambda x: x.exp() - 1.0,
    "erfc":        lambda x: 1.0 - x.erf(),
    "log_sigmoid_forward": lambda x: -x.softplus(-1.0),
    "logical_not": lambda x: x.equals(0.0),
    "bitwise_not": lambda x: x.by("bitwise_xor", -1),
    "isnan":       lambda x: x.differs(x),
    "isinf":       lambda x: x.abs().equals(inf),
    "isfinite":    lambda x: x.abs() < inf,
    "floor":       lambda x: x.where_it_rounds(x.rounded_down()),
    "ceil":        lambda x: x.where_it_rounds(_ceiling(x)),
    "round":       lambda x: x.where_it_rounds(x.nearest().copied()),
    "trunc":       Value.truncated,
    "frac":        lambda x: x - x.truncated(),
    "relu6":       lambda x: x.between(0.0, 6.0),
    "hardsigmoid": _hardsigmoid,
    "hardswish":   lambda x: x * _hardsigmoid(x),
    "tan":         _tangent,
    "clamp":       lambda x: x.between(-1.0, 1.0),
    "clamp_min":   lambda x: x.maximum(0.0),
    "clamp_max":   lambda x: x.minimum(0.0),
    "pow_scalar":  lambda x: x.by("power", 2.0),
    "signbit":     _is_negative,
    "sgn":         methodcaller("sign"),
    "isposinf":    lambda x: x.equals(inf),
    "isneginf":    lambda x: x.equals(-inf),
    "deg2rad":     lambda x: x * (2 * HALF_PI / 180),
    "rad2deg":     lambda x: x * (180 / (2 * HALF_PI)),
    "sinh":        lambda x: (x.exp() - x.exp(-1.0)) * 0.5,
    "cosh":        lambda x: (x.exp() + x.exp(-1.0)) * 0.5,
    "asinh":       _asinh,
    "atanh":       lambda x: ((x + 1.0).log() - (1.0 - x).log()) * 0.5,
    "asin":        _arcsine,
    "acos":        lambda x: HALF_PI - _arcsine(x),
})

BINARY: MappingProxyType[str, Formula] = MappingProxyType({
    **{name: lambda x, y, op=op: x.by(op, y) for name, op in _OPERATIONS.items()},
    "rsub":          lambda x, y: y - x,
    "div":           lambda x, y: x / y,
    "true_divide":   lambda x, y: x / y,
    "fmax":          partial(_or_the_other, "max"),
    "fmin":          partial(_or_the_other, "min"),
    "pow":           lambda x, y: x.by("power", y, Engine.GPSIMD),
    "atan2":         _arctangent,
    "logaddexp":     _logaddexp,
    "copysign":      _copysign,
    "heaviside":     _heaviside,
    "clamp_min":     Value.maximum,
    "clamp_max":     Value.minimum,
    "hypot":         _hypotenuse,
    "xlogy":         _xlogy,
    "gelu_backward":       lambda g, x: g * x.gelu_dx(),
    "silu_backward":       lambda g, x: g * x.silu_dx(),
    "sigmoid_backward":    lambda g, y: g * (y * (1.0 - y)),
    "tanh_backward":       lambda g, y: g * (1.0 - y.square()),
    "hardswish_backward":  _hardswish_gradient,
    "hardsigmoid_backward": lambda g, x: (x.abs() < 3.0).where(g * (1 / 6), 0.0),
    "log_sigmoid_backward": lambda g, x: g * x.sigmoid(-1.0),
    "native_dropout_backward": lambda g, mask: g * mask,
})

TERNARY: MappingProxyType[str, Formula] = MappingProxyType({
    "addcmul":       lambda x, a, b: x + a * b,
    "addcdiv":       lambda x, a, b: x + a / b,
    "lerp":          lambda a, b, w: a + w * (b - a),
    "clamp_tensor":  lambda x, low, high: x.maximum(low).minimum(high),
})

# Formulas by another name than the operator's.
CHOSEN = frozenset(("clamp_tensor", "pow_scalar"))
# fmt: on


def elementwise(
    name: str, steps: Sequence[Step], operands: Sequence[TensorArg], out: TensorArg, target: Target
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


def conversion(source: str, to: str) -> list[Step]:
    """The steps from one dtype to another; none where a copy converts as torch does.

    A copy rounds to whole numbers, where torch truncates, and it saturates, where torch keeps the
    last bits of an integer; a truth value says if a number is not 0.
    """
    if source == to:
        return []
    if to == "bool":
        return steps_of(lambda x: x.differs(0.0), 1)
    if "float" in source and "int" in to:
        return steps_of(lambda x: x.truncated().copied(), 1)
    if to in _BITS and source not in ("bool", *_WITHIN.get(to, ())) and "int" in source:
        return steps_of(lambda x: _last_bits(x, _BITS[to], signed=to[0] == "i"), 1)
    return []


_BITS = MappingProxyType({"int8": 8, "uint8": 8, "int16": 16, "uint16": 16})
# Integers that others hold.
_WITHIN = MappingProxyType({"int16": ("int8", "uint8"), "uint16": ("uint8",)})


def _last_bits(x: Value, bits: int, *, signed: bool) -> Value:
    """Of an integer. Of a signed one the first of them counts negative."""
    every, sign = 2**bits - 1, 2 ** (bits - 1)
    if not signed:
        return x.step("tensor_scalar", dtype="int32", op0="bitwise_and", imm0=every)
    flipped = {"op0": "bitwise_and", "imm0": every, "op1": "bitwise_xor", "imm1": sign}
    return x.step("tensor_scalar", dtype="int32", **flipped) - float(sign)


def flattened(
    name: str, steps: Sequence[Step], operands: Sequence[TensorArg], out: TensorArg, target: Target
) -> Program:
    """`steps` over tensors of one size, whatever their shapes."""
    same = [TensorArg(t.torch_dtype, (out.numel,), (1,), views=t.views) for t in operands]
    return elementwise(name, steps, same, out, target)


def _as(s: Step, dtype: str) -> Step:
    return replace(s, dtype=dtype)


# --- from calls ----------------------------------------------------------------------------------


def _device(call: Call) -> list[TensorArg]:
    return [t for t in call.tensors if _is_operand(t)]


# Powers of floating-point numbers that are another instruction, with the same results.
_POWERS: MappingProxyType[float, Formula] = MappingProxyType(
    {1.0: lambda x: x * 1.0, 2.0: methodcaller("square")}
)


def _number(value: Any, op: str) -> float:
    """A number of the call; 1 where it is a tensor of the host, whose value is data."""
    if not isinstance(value, (bool, int, float)):
        return 1.0
    return int(value) if op.startswith("bitwise") else float(value)


def _with_number(call: Call, x: Value) -> Value:
    """A tensor and a number, in the order of the call: `alpha` scales the second of them."""
    op = _WITH_SCALAR[call.name]
    first = isinstance(call.argument(0), TensorArg)
    number = _number(call.argument(1 if first else 0), op)
    alpha = float(call.argument(2, 1)) if call.name in ("add", "sub") else 1.0
    if call.name in ("div", "true_divide"):
        # The engines multiply by the reciprocal; that of a zero is an infinity of its sign.
        inverse = 1.0 / number if number else copysign(inf, number)
        return x * inverse if first else x.reciprocal() * number
    if op == "power" and first and "float" in call.tensors[0].dtype and number in _POWERS:
        return _POWERS[number](x)
    if first:
        return x.by(op, number if alpha == 1 else number * alpha)
    if call.name in ("add", "sub"):
        return x * (alpha if op == "add" else -alpha) + number
    return x.step("tensor_scalar", op0=op, imm0=number, reverse0=True)


def _chosen(call: Call, operands: Sequence[Value], made: Made) -> Value:
    """`where` and `masked_fill`: (mask, value where it holds, value elsewhere), numbers or tensors.

    The value of a tensor of the host is data: 0 stands for it.
    """
    mask, on_true, on_false = (0, 1, 2) if call.name == "where" else (1, 2, 0)
    tensors = [k for k in range(3) if _is_operand(call.argument(k))]
    if mask not in tensors:
        raise KeyError(f"{call.name} of a tensor of the host")
    values = dict(zip(tensors, operands, strict=False))
    for k in (on_true, on_false):
        if k not in values:
            values[k] = filled(made, _value(call.argument(k)))
    return values[mask].step("select", values[on_true], values[on_false])


def _is_operand(value: Any) -> bool:
    """Whether an argument is a tensor that the program loads."""
    return isinstance(value, TensorArg) and not (value.on_host and not value.shape)


def _value(value: Any) -> float:
    return float(value) if isinstance(value, (bool, int, float)) else 0.0


_BY_CALL: MappingProxyType[str, Reader] = MappingProxyType(
    {**READERS, **QUOTIENTS, **ACTIVATIONS, **LOSSES, **GRADIENTS}
)


def recipe_of(call: Call, operands: Sequence[TensorArg]) -> list[Step] | None:
    """The steps for a call, by its name and number of tensors; None if there is no row.

    Raises Unimplemented for a number or flag that the formula does not stand for.
    """
    call = _of_truth_values(call)
    made: Made = []
    values = [Value(made, k) for k in range(len(operands))]
    result = _value_of(call, values, made)
    return finished(made, result) if result else None


def _value_of(call: Call, values: Sequence[Value], made: Made) -> Value | None:
    name, count = call.name, len(values)
    if name in DRAWS:
        return draw(made, call, values)
    if name in _BY_CALL and (found := _BY_CALL[name](call, values)):
        return found
    if name in MADE_VALUES:
        return values[-1].copied() if fills_from(call) else filled(made, made_value(call))
    if name in ("where", "masked_fill"):
        return _chosen(call, values, made)
    if count == 1 and name in _WITH_SCALAR:
        return _with_number(call, values[0])
    if name in ("add", "sub") and count == 2 and call.argument(2, 1) != 1:
        return values[0].by(_WITH_SCALAR[name], values[1] * float(call.argument(2)))
    if name in ("addcmul", "addcdiv") and count == 3 and call.argument(3, 1) != 1:
        x, a, b = values
        return x + (a * b if name == "addcmul" else a / b) * float(call.argument(3))
    if name in ("clamp", "clamp_min", "clamp_max") and count == 1:
        return _clamped(call, values[0])
    if name == "clamp" and count > 1:
        bound = Value.minimum if call.argument(1) is None else Value.maximum
        return TERNARY["clamp_tensor"](*values) if count == 3 else bound(*values)
    formula = {1: UNARY, 2: BINARY, 3: TERNARY}.get(count, UNARY).get(name)
    if formula is None:
        return None
    _refuse_other_numbers(call)
    return formula(*values)


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


def _clamped(call: Call, x: Value) -> Value:
    """One pass for either bound, or both."""
    low, high = (call.argument(1), call.argument(2)) if call.name == "clamp" else (None, None)
    low = call.argument(1) if call.name == "clamp_min" else low
    high = call.argument(1) if call.name == "clamp_max" else high
    if low is None and high is None:
        return UNARY[call.name](x)
    x = x if low is None else x.maximum(float(low))
    return x if high is None else x.minimum(float(high))


# Tensors that a recipe reads of those that a call has: what the forward pass left is not needed.
_READS = MappingProxyType({"log_sigmoid_backward": 2})


def lower_elementwise(call: Call, target: Target) -> Lowered:
    """An elementwise call; tensors that steps make on the core are not loaded."""
    operands = parameters(call) if call.name in DRAWS else _device(call)[: _READS.get(call.name)]
    if call.name in MADE_VALUES:
        operands = operands[-1:] if fills_from(call) else []
    steps = recipe_of(call, operands)
    if steps is None:
        raise KeyError(f"no recipe for {call.op} of {len(operands)} tensors")
    return (elementwise(call.name, steps, operands, call.out, target),)
