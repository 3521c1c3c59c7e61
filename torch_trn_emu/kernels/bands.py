"""Few planes on 128 partitions: each has a part of a plane, such as a band of its rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .limits import P

__all__ = ["FIXED", "LANES", "TRANSFER", "Planes", "cut", "planes_in_lanes"]

# Cycles of an instruction besides its elements (two each), and of a strip's transfers: roughly.
FIXED, TRANSFER = 64, 2000
LANES = tuple(n for k in range(P.bit_length()) for n in (1 << k, 3 << (k - 1) if k else 0) if n)
GROUPS = 3  # of planes with equally many lanes (chosen: a small program)


@dataclass(frozen=True, slots=True)
class Planes:
    """`count` planes from `first` on, each on `lanes` partitions at once."""

    first: int
    count: int
    lanes: int


def planes_in_lanes(planes: int, takes: Callable[[int], float]) -> list[Planes]:
    """Full tiles of planes, and the rest in groups; one with n lanes takes `takes(n)`."""
    whole, rest = planes // P * P, planes % P
    groups = [Planes(0, whole, 1)] if whole else []
    if not rest:
        return groups
    return groups + _cheapest(whole, rest, {n: takes(n) for n in LANES}, GROUPS)


def _cheapest(first: int, rest: int, cost: dict[int, float], most: int) -> list[Planes]:
    found = []
    for lanes in cost:
        count = min(rest, P // lanes)
        group, left = Planes(first, count, lanes), rest - count
        if not left:
            found.append([group])
        elif count and most > 1:
            found.append([group, *_cheapest(first + count, left, cost, most - 1)])
    return min(found, key=lambda groups: sum(cost[group.lanes] for group in groups))


def cut(strips: int, bands: int) -> Iterator[tuple[int, int, int]]:
    """(first, how many times, how many at once) of strips, `bands` at once."""
    full, rest = divmod(strips, bands)
    if full:
        yield 0, full, bands
    if rest:
        yield full * bands, 1, rest
