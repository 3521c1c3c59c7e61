"""Windows of a graph: its programs between two transfers of the host, which run as one schedule.

The programs of a window run on engines that run on: the loads of one, its weights above all, begin
while others compute. Equal windows are scheduled once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from ..calls import Target
from ..isa import Program
from ..pricing import Price, price_run
from ..timing.graph import PartTimes, price_graph
from .programs import Lowered
from .schedules import Schedule

__all__ = ["Scheduled", "Window", "schedule_window", "windows"]


@dataclass(frozen=True)
class Window:
    """Programs that run as one; or one part that has a price only."""

    parts: tuple[Lowered, ...]

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Equal windows have equal schedules: tensors by number in the order of their first use."""
        numbers: dict[str, int] = {}

        def of(names: Sequence[str]) -> tuple[int, ...]:
            return tuple(numbers.setdefault(n, len(numbers)) for n in names)

        parts = tuple(
            (p.key, tuple(p.tensors), of(tuple(p.tensors.values())), of(p.reads), of(p.makes))
            for p in self.parts
        )
        return parts, of(sorted(self.ordered))

    @cached_property
    def ordered(self) -> frozenset[str]:
        """Tensors that are written in place."""
        return frozenset().union(*(p.ordered for p in self.parts))

    @property
    def priced(self) -> bool:
        """Whether it has a price only."""
        return self.parts[0].program is None

    def schedule(self) -> Schedule:
        return Schedule(tuple(p.part() for p in self.parts), self.ordered)

    def program(self, target: Target) -> Program:
        """All parts as one program."""
        return self.schedule().program(target.chip)


def windows(parts: Sequence[Lowered]) -> list[Window]:
    """Cut the programs of a graph where the host takes part."""
    found: list[Window] = []
    for have_programs, run in groupby(parts, key=lambda part: part.program is not None):
        if have_programs:
            found.append(Window(tuple(run)))
        else:
            found += (Window((p,)) for p in run if p.price is None or not p.price.free)
    return found


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A window's price, and when each of its parts ran."""

    price: Price
    parts: tuple[PartTimes, ...]


MOST_PRICED = 1024  # windows whose prices are kept (chosen)
_priced: dict[tuple[Any, ...], Scheduled] = {}


def schedule_window(window: Window, target: Target) -> Scheduled:
    """What a window takes, as a program of its own."""
    first = window.parts[0]
    if first.price is not None:
        seconds = first.price.seconds
        return Scheduled(first.price, (PartTimes(start_s=0.0, end_s=seconds, added_s=seconds),))
    key = (target, window.key)
    if key not in _priced:
        if len(_priced) >= MOST_PRICED:
            del _priced[next(iter(_priced))]  # the oldest
        run = price_graph([p.part() for p in window.parts], target.chip, window.ordered)
        _priced[key] = Scheduled(price_run("window", run, target.chip), run.parts)
    return _priced[key]
