"""Software pipelines: a loop's body works on several items at once, each at another stage.

Engines take their instructions in program order. An engine that waits for another one's result
therefore idles, unless the program has work of the next item in between.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from ..isa import Affine, Builder

__all__ = ["Item", "Window", "pipelined"]

Kind = TypeVar("Kind", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Item(Generic[Kind]):
    """One of the items that differ in nothing but their index."""

    kind: Kind
    index: Affine


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
    if not kinds:
        return
    none: list[Kind | None] = [None] * (depth - 1)
    padded = [*none, *kinds, *none]
    windows = [tuple(padded[p : p + depth][::-1]) for p in range(len(padded) - depth + 1)]
    first = 0
    for _, equal in groupby(windows, key=lambda w: (tuple(k is None for k in w), alike(w))):
        window, *more = equal
        with b.loop(1 + len(more)) as i:
            body(
                tuple(
                    None if kind is None else Item(kind, i + (first - age))
                    for age, kind in enumerate(window)
                )
            )
        first += 1 + len(more)
