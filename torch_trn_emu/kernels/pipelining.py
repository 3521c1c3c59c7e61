"""Software pipelines: a loop's body works on several items at once, each at another stage.

Engines take their instructions in program order. An engine that waits for another one's result
therefore idles, unless the program has work of the next item in between.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Generic, TypeVar

from ..isa import Affine, Builder

__all__ = ["Item", "Window", "pipelined", "repeated"]

Kind = TypeVar("Kind", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Item(Generic[Kind]):
    """One of the items that differ in nothing but their index and, if they repeat, their round."""

    kind: Kind
    index: Affine
    round: Affine = Affine()


Window = tuple[Item[Kind] | None, ...]
_Kinds = tuple[Kind | None, ...]


def _everything(kinds: tuple[Hashable | None, ...]) -> Hashable:
    return kinds


def pipelined(
    b: Builder,
    kinds: Sequence[Kind],
    depth: int,
    body: Callable[[Window[Kind]], None],
    alike: Callable[[_Kinds[Kind]], Hashable] = _everything,
) -> None:
    """Emit `body` for every position of a window of `depth` items that slides over all of them.

    The window has the newest item first, None before the first item and behind the last one.
    Neighbouring positions become a loop where `alike` gives equal keys for their kinds. Without
    items nothing is emitted.
    """
    if kinds:
        repeated(b, kinds, 1, depth, body, alike)


def repeated(
    b: Builder,
    kinds: Sequence[Kind],
    rounds: int,
    depth: int,
    body: Callable[[Window[Kind]], None],
    alike: Callable[[_Kinds[Kind]], Hashable] = _everything,
) -> None:
    """`pipelined` over all items of each round: the last ones of one meet the first of the next."""
    size, ahead = len(kinds), min(rounds, ceil((depth - 1) / len(kinds)))

    def window(at: Affine, position: int) -> tuple[tuple[Kind, int, Affine] | None, ...]:
        """What the window holds at a position of a round: kind, its number, its round."""
        found: list[tuple[Kind, int, Affine] | None] = []
        for age in range(depth):
            back, k = divmod(position - age, size)
            here = at + back
            outside = not here.terms and not 0 <= here.const < rounds
            found.append(None if outside else (kinds[k], k, here))
        return tuple(found)

    def key(found: tuple[tuple[Kind, int, Affine] | None, ...]) -> Hashable:
        return tuple(x and x[2] for x in found), alike(tuple(x and x[0] for x in found))

    def emit(at: Affine, positions: range) -> None:
        for _, equal in groupby((window(at, k) for k in positions), key=key):
            first, *more = equal
            with b.loop(1 + len(more)) as i:
                body(tuple(x and Item(x[0], i + x[1], x[2]) for x in first))

    for done in range(ahead):
        emit(Affine(done), range(size))
    if rounds > ahead:
        with b.loop(rounds - ahead) as i:
            emit(i + ahead, range(size))
    emit(Affine(rounds), range(depth - 1))
