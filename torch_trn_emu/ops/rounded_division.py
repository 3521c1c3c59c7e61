"""Quotients rounded to whole numbers, and what they leave: readers of floor_divide, remainder, fmod
and div with a rounding mode.

The engines have no division: a times 1 / b is rounded twice, so its whole part can be one off. What
it leaves of a, which is exact as long as whole part times b is, tells, and both are put right. The
quotient must be below 2^23 and the divisor not 0.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

from ..calls import Call
from .activations import Reader
from .formulas import Value, in_float32

__all__ = ["QUOTIENTS"]

Divisor = Value | float


def _inverse(b: Divisor) -> Divisor:
    return b.reciprocal() if isinstance(b, Value) else 1 / b


def _sign(b: Divisor) -> Divisor:
    return b.sign() if isinstance(b, Value) else 1.0 if b > 0 else -1.0


def _magnitude(b: Divisor) -> Divisor:
    return b.abs() if isinstance(b, Value) else abs(b)


def _quotient(a: Value, b: Divisor, *, magnitudes: bool) -> tuple[Value, Value]:
    """The whole part below a / b, and what it leaves; or of |a| / |b|."""

    def divisor() -> Divisor:
        return _magnitude(b) if magnitudes else b

    a = a.abs() if magnitudes else a.copy()
    inexact = a * _inverse(b)
    if magnitudes:
        inexact = inexact.abs()
    whole = inexact.rounded_down()
    rest = a - whole * divisor()
    turned = rest if magnitudes else rest * _sign(b)
    less = turned < 0.0
    off = (turned >= _magnitude(b)) - less
    whole = whole + off
    return whole, rest - off * divisor()


def _below(a: Value, b: Divisor) -> Value:
    return _quotient(a, b, magnitudes=False)[0] + 0.0  # the result is the last step


def _remainder(a: Value, b: Divisor) -> Value:
    return _quotient(a, b, magnitudes=False)[1]


def _towards_zero(a: Value, b: Divisor) -> Value:
    whole, _ = _quotient(a, b, magnitudes=True)
    return whole * a.sign() * _sign(b)


def _rest(a: Value, b: Divisor) -> Value:
    _, rest = _quotient(a, b, magnitudes=True)
    return rest * a.sign()


def _reader(formula: Callable[[Value, Divisor], Value]) -> Reader:
    def read(call: Call, operands: Sequence[Value]) -> Value | None:
        value = call.argument(1)
        number = float(value) if isinstance(value, (int, float)) else None
        if isinstance(call.argument(0), (int, float)) or number == 0:
            raise KeyError(f"{call.op} of a number, or by 0")
        made = formula(operands[0], operands[1] if len(operands) == 2 else number or 1.0)
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
