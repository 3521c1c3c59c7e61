"""Formulas that the numbers, flags or dtypes of an elementwise call choose: a reader for each.

A reader gives None where the formula by name holds. To add one, add a row to READERS.
"""

from collections.abc import Sequence
from math import pi, sqrt
from types import MappingProxyType
from typing import Any

from ..calls import Call, TensorArg
from ..isa import itemsize
from .activations import Reader
from .formulas import Value

__all__ = ["MADE_VALUES", "READERS", "fills_from", "made_value"]

# What operators that make a tensor of one value fill it with; None: with a number of the call.
MADE_VALUES: MappingProxyType[str, float | None] = MappingProxyType(
    dict.fromkeys(("zero", "zeros", "zeros_like", "new_zeros"), 0.0)
    | dict.fromkeys(("ones", "ones_like", "new_ones"), 1.0)
    | dict.fromkeys(("fill", "full", "full_like", "new_full", "scalar_tensor"))
)


def _filling(call: Call) -> Any:
    return call.argument({"scalar_tensor": 0, "new_full": 2}.get(call.name, 1))


def fills_from(call: Call) -> bool:
    """Whether a tensor of the device holds the value that another is filled with."""
    given = _filling(call) if MADE_VALUES[call.name] is None else None
    return isinstance(given, TensorArg) and not given.on_host


def made_value(call: Call) -> float:
    """What a tensor is filled with; 0 where that is a tensor of the host's, whose value is data."""
    value = MADE_VALUES[call.name]
    if value is not None:
        return value
    given = _filling(call)
    return float(given) if isinstance(given, (bool, int, float)) else 0.0


def _reversed(call: Call, operands: Sequence[Value]) -> Value:
    """Other - alpha * self."""
    x, *other = operands
    alpha = float(call.argument(2, 1))
    if not other:
        return x * -alpha + float(call.argument(1))
    return other[0] - (x if alpha == 1 else x * alpha)


def _power(call: Call, operands: Sequence[Value]) -> Value | None:
    """A number to the power of a tensor."""
    base = call.argument(0)
    if not isinstance(base, (int, float)):
        return None
    return operands[0].step("tensor_scalar", op0="power", imm0=float(base), reverse0=True)


def _complement(call: Call, operands: Sequence[Value]) -> Value:
    """Of a truth value, or of all bits."""
    dtype = call.out.dtype
    if dtype == "bool":
        return operands[0].equals(0.0)
    return operands[0].by("bitwise_xor", 2 ** (8 * itemsize(dtype)) - 1 if dtype[0] == "u" else -1)


def _dropped(call: Call, operands: Sequence[Value]) -> Value:
    """Grad * mask * scale"""
    g, mask = operands
    return g * mask * float(call.argument(2, 1.0))


def _rounded(call: Call, operands: Sequence[Value]) -> Value | None:
    """To the nearest whole number, or to decimals: of x times a power of 10."""
    decimals = int(call.argument(1, 0))
    if not decimals:
        return None
    factor = 10.0 ** abs(decimals)
    up, down = (factor, 1 / factor) if decimals > 0 else (1 / factor, factor)
    scaled = operands[0] * up
    return scaled.where_it_rounds(scaled.nearest().copied()) * down


def _interpolated(call: Call, operands: Sequence[Value]) -> Value | None:
    """From the nearer end, as torch: a + w (b - a), or b - (1 - w) (b - a) from w = 1/2 on."""
    given = call.argument(2, 0.5)
    if len(operands) == 2 and isinstance(given, (bool, int, float)):
        a, b = operands
        weight, between = float(given), b - a
        return a + between * weight if abs(weight) < 0.5 else b - between * (1 - weight)
    if len(operands) != 3:
        return None
    a, b, w = operands
    between = b - a
    near = a + w * between
    far = b - between * (1.0 - w)
    return (w.abs() < 0.5).where(near, far)


def _gelu(call: Call, operands: Sequence[Value]) -> Value | None:
    return operands[0].gelu_apprx_tanh() if "tanh" in call.arguments else None


def _gelu_gradient(call: Call, operands: Sequence[Value]) -> Value | None:
    """Of x (1 + t) / 2 with t = tanh(k (x + c x^3)): the engine has the exact one's alone."""
    if "tanh" not in call.arguments:
        return None
    g, x = operands
    k, c = sqrt(2 / pi), 0.044715
    squared = x.square()
    t = (x * (squared * c + 1.0)).tanh(k)
    rest = 1.0 - t.square()
    slope = (squared * (3 * c * k) + k) * rest
    return g * ((t + x * slope + 1.0) * 0.5)


READERS: MappingProxyType[str, Reader] = MappingProxyType({
    "rsub": _reversed,
    "pow": _power,
    "bitwise_not": _complement,
    "native_dropout_backward": _dropped,
    "gelu": _gelu,
    "gelu_backward": _gelu_gradient,
    "round": _rounded,
    "lerp": _interpolated,
})  # fmt: skip
