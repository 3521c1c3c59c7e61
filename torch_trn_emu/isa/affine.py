"""Affine expressions of loop counters: where an instruction in a loop finds its tile."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import EmulatorBug

__all__ = ["Affine", "Index", "affine"]


@dataclass(frozen=True, slots=True)
class Affine:
    """`const + sum(coefficient * counter)`; `terms` holds (loop id, coefficient), ids ascending."""

    const: int = 0
    terms: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: "Index") -> "Affine":
        if isinstance(other, int):
            return Affine(self.const + other, self.terms)
        if not other.terms:
            return Affine(self.const + other.const, self.terms)
        sums = dict(self.terms)
        for loop, coefficient in other.terms:
            sums[loop] = sums.get(loop, 0) + coefficient
        terms = tuple(sorted((loop, c) for loop, c in sums.items() if c))
        return Affine(self.const + other.const, terms)

    __radd__ = __add__

    def __mul__(self, factor: int) -> "Affine":
        if not factor:
            return Affine()
        return Affine(self.const * factor, tuple((loop, c * factor) for loop, c in self.terms))

    __rmul__ = __mul__

    def divided(self, divisor: int) -> "Affine":
        """The exact quotient. Every part must be a multiple of `divisor`."""
        parts = (self.const, *(c for _, c in self.terms))
        if any(part % divisor for part in parts):
            raise EmulatorBug(f"{self} is not a multiple of {divisor}")
        terms = tuple((loop, c // divisor) for loop, c in self.terms)
        return Affine(self.const // divisor, terms)

    def at(self, counters: Mapping[int, int]) -> int:
        """The value for given loop counters."""
        return self.const + sum(c * counters[loop] for loop, c in self.terms)

    def bounds(self, trips: Mapping[int, int]) -> tuple[int, int]:
        """Smallest and largest value when every counter runs over its loop."""
        spans = [c * (trips[loop] - 1) for loop, c in self.terms]
        low = sum(s for s in spans if s < 0)
        return self.const + low, self.const + sum(spans) - low

    def __str__(self) -> str:
        parts = [f"{c}*i{loop}" if c != 1 else f"i{loop}" for loop, c in self.terms]
        return "+".join(parts + [str(self.const)] * (self.const != 0 or not parts))


Index = int | Affine


def affine(value: Index) -> Affine:
    """`value` as an expression."""
    return value if isinstance(value, Affine) else Affine(value) if value else _ZERO


_ZERO = Affine()
