"""Quotients rounded to whole numbers, and what they leave: readers of floor_divide, remainder, fmod
and div with a rounding mode.

The engines have no division: a times 1 / b is rounded twice, so its whole part can be one off. What
it leaves of a, which is exact as long as whole part times b is, tells, and both are put right. All
is worked out for magnitudes, towards zero; signs come after. The quotient must be below 2^23.
Zeros, infinities and NaN give what the host gives: a quotient that is not finite is its own whole
part, and leaves NaN.
"""

from collections.abc import Callable, Sequence
from math import copysign, inf, isnan
from types import MappingProxyType

from ..calls import Call
from .activations import Reader
from .formulas import WHOLE_FROM, Value, in_float32

__all__ = ["QUOTIENTS"]

Divisor = Value | float
LARGEST = 3.4028234663852886e38  # of float32; times 0 it is 0


def _inverse(b: Divisor) -> Divisor:
    if isinstance(b, Value):
        return b.reciprocal()
    return 1 / b if b else copysign(inf, b)


def _sign(b: Divisor) -> Divisor:
    return b.sign() if isinstance(b, Value) else float(b > 0) - float(b < 0)


def _magnitudes(b: Divisor) -> tuple[Divisor, Divisor]:
    """Of the divisor; and cut to what is finite."""
    if isinstance(b, Value):
        magnitude = b.abs()
        return magnitude, magnitude.minimum(LARGEST)
    return abs(b), b if isnan(b) else min(abs(b), LARGEST)


def _parts(a: Value, b: Divisor) -> tuple[Value, Value, Value]:
    """A / b as it is rounded; the whole part of |a| / |b|, and what it leaves of |a|."""
    quotient = a * _inverse(b)
    whole = quotient.abs().rounded_down()
    magnitude, finite = _magnitudes(b)
    rest = a.abs() - whole * finite
    less = rest < 0.0
    off = (rest >= magnitude) - less
    return quotient, whole + off, rest - off * finite


def _turns(rest: Value, signs: Value) -> Value:
    """Whether the whole number below is one less than that towards zero."""
    return (rest > 0.0) * (signs < 0.0)


def _below(a: Value, b: Divisor) -> Value:
    quotient, whole, rest = _parts(a, b)
    signs = a.sign() * _sign(b)
    below = whole * signs - _turns(rest, signs)
    unbounded = a * 0.0 + quotient  # NaN for an infinity, unless it is divided by 0
    if isinstance(b, Value):
        unbounded = b.equals(0.0).where(quotient, unbounded)
    return (quotient.abs() < WHOLE_FROM).where(below, unbounded if b else quotient)


def _remainder(a: Value, b: Divisor) -> Value:
    quotient, _, rest = _parts(a, b)
    sign = a.sign()
    turns = _turns(rest, sign * _sign(b))
    rest = rest * sign
    return turns.where(rest + b, rest) + quotient * 0.0


def _towards_zero(a: Value, b: Divisor) -> Value:
    quotient, whole, _ = _parts(a, b)
    return (quotient.abs() < WHOLE_FROM).where(whole * (a.sign() * _sign(b)), quotient)


def _rest(a: Value, b: Divisor) -> Value:
    quotient, _, rest = _parts(a, b)
    return rest * a.sign() + quotient * 0.0


def _reader(formula: Callable[[Value, Divisor], Value]) -> Reader:
    def read(call: Call, operands: Sequence[Value]) -> Value | None:
        value = call.argument(1)
        number = float(value) if isinstance(value, (int, float)) else None
        if isinstance(call.argument(0), (int, float)):
            raise KeyError(f"{call.op} of a number")
        given = operands[1] if len(operands) == 2 else 1.0 if number is None else number
        made = formula(operands[0], given)
        in_float32(made.made)
        return made

    return read


def _by_mode(call: Call, operands: Sequence[Value]) -> Value | None:
    """Rounded, where the call says so."""
    mode = next((m for m in call.arguments[2:] if m in ("floor", "trunc")), "")
    if not mode:
        return None
    return _reader(_below if mode == "floor" else _towards_zero)(call, operands)


QUOTIENTS: MappingProxyType[str, Reader] = MappingProxyType({
    "floor_divide": _reader(_below),
    "remainder": _reader(_remainder),
    "fmod": _reader(_rest),
    "div": _by_mode,
    "true_divide": _by_mode,
})  # fmt: skip
