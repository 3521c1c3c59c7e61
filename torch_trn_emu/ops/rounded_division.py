"""Quotients rounded to whole numbers, and what they leave: readers of floor_divide, remainder, fmod
and div with a rounding mode.

The engines have no division: a times 1 / b is rounded twice, so its whole part can be one off. What
it leaves of a, which is exact as long as whole part times b is, tells, and both are put right. The
quotient must be below 2^23 and the divisor not 0.
"""

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..calls import Call, TensorArg
from ..kernels.pointwise import Step, activation, tensor_scalar, tensor_tensor
from .attributes import Reader, rounded_down

__all__ = ["QUOTIENTS"]


class _Recipe:
    """Steps by name; the divisor is operand 1, or a number."""

    def __init__(self, divisor: float | None) -> None:
        self.divisor = divisor
        self.steps: list[Step] = []

    def add(self, *steps: Step) -> int:
        """The place of the last of them."""
        self.steps += steps
        return len(self.steps) - 1

    def back(self, place: int) -> int:
        """A result as the next step reads it."""
        return place - len(self.steps)

    def tensor(self, op: str, a: int, c: int) -> int:
        return self.add(tensor_tensor(op, self.back(a), self.back(c)))

    def number(self, op: str, a: int, value: float) -> int:
        return self.add(tensor_scalar(self.back(a), op0=op, imm0=value))

    def source(self, function: str, of: int) -> int:
        """A function of operand `of`."""
        return self.add(activation(function, of))

    def with_divisor(self, op: str, a: int, function: str = "") -> int:
        """`a op f(divisor)`"""
        if self.divisor is not None:
            of = {"": self.divisor, "reciprocal": 1 / self.divisor, "abs": abs(self.divisor),
                  "sign": 1.0 if self.divisor > 0 else -1.0}  # fmt: skip
            return self.number(op, a, of[function])
        if not function:
            return self.add(tensor_tensor(op, self.back(a), 1))
        return self.tensor(op, a, self.source(function, 1))

    def quotient(self, magnitudes: bool) -> tuple[int, int]:
        """Places of the whole part below a / b, and of what it leaves; or of |a| / |b|."""
        function = "abs" if magnitudes else ""
        a = self.source("abs" if magnitudes else "copy", 0)
        inverse = self.with_divisor("multiply", a, "reciprocal")
        if magnitudes:
            inverse = self.add(activation("abs", self.back(inverse)))
        whole = self.add(*rounded_down(self.back(inverse)))
        rest = self.tensor("subtract", a, self.with_divisor("multiply", whole, function))
        turned = rest if magnitudes else self.with_divisor("multiply", rest, "sign")
        less = self.number("less", turned, 0.0)
        more = self.with_divisor("greater_equal", turned, "abs")
        off = self.tensor("subtract", more, less)
        whole = self.tensor("add", whole, off)
        rest = self.tensor("subtract", rest, self.with_divisor("multiply", off, function))
        return whole, rest

    def done(self, place: int) -> list[Step]:
        """All steps, in float32; the result is the last."""
        if place != len(self.steps) - 1:
            self.number("add", place, 0.0)
        return [replace(s, dtype=s.dtype or "float32") for s in self.steps]


def _below(recipe: _Recipe) -> int:
    return recipe.quotient(magnitudes=False)[0]


def _remainder(recipe: _Recipe) -> int:
    return recipe.quotient(magnitudes=False)[1]


def _towards_zero(recipe: _Recipe) -> int:
    whole, _ = recipe.quotient(magnitudes=True)
    signed = recipe.tensor("multiply", whole, recipe.source("sign", 0))
    return recipe.with_divisor("multiply", signed, "sign")


def _rest(recipe: _Recipe) -> int:
    _, rest = recipe.quotient(magnitudes=True)
    return recipe.tensor("multiply", rest, recipe.source("sign", 0))


def _reader(finish: Any) -> Reader:
    def read(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
        value = call.argument(1)
        divisor = float(value) if isinstance(value, (int, float)) else None
        if isinstance(call.argument(0), (int, float)) or divisor == 0:
            raise KeyError(f"{call.op} of a number, or by 0")
        recipe = _Recipe(None if len(operands) == 2 else divisor or 1.0)
        return recipe.done(finish(recipe))

    return read


def _by_mode(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """Rounded, where the call says so."""
    mode = next((m for m in call.arguments[2:] if m in ("floor", "trunc")), "")
    if not mode:
        return None
    return _reader(_below if mode == "floor" else _towards_zero)(call, operands)


QUOTIENTS: MappingProxyType[str, Reader] = MappingProxyType(
    {
        "floor_divide": _reader(_below),
        "remainder": _reader(_remainder),
        "fmod": _reader(_rest),
        "div": _by_mode,
        "true_divide": _by_mode,
    }
)
