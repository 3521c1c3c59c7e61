"""Where sliding windows touch: strips of a convolution's or pooling's axis and the taps in them.

A strip is a run of positions worked on together ("own"), with what it needs of the other side
("there"). For a forward pass own positions are outputs and it needs inputs; for a gradient own
positions are inputs and it needs outputs. A tap is cut to what lies inside the tensor, so nothing
is padded. Strips that look alike become one loop.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod

from .limits import evenly

ROW_BYTES = 160 * 1024  # of a partition that one row may take: every chip has as many (chosen)
MOST_STRIPS = 1 << 16  # of an axis, which take about a second (chosen)
MOST_UNROLLED = 1024  # strips of a program one after the other, a few seconds (chosen)
MOST_PRODUCTS = 1 << 18  # of taps, one by one in a program: less than a minute (chosen)

__all__ = [
    "Axis",
    "Strip",
    "Tap",
    "check_products",
    "inside_together",
    "taps_of",
    "windows_across",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """Tap `k`: `count` positions, from `own` in the strip and from `there` in what it needs."""

    k: int
    own: int
    there: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """`repeat` strips of `count` own positions from `first`, needing `span` others from `low`.

    Each further strip starts `count` own positions and `step` others later.
    """

    first: int
    count: int
    low: int
    span: int
    taps: tuple[Tap, ...]
    repeat: int = 1
    step: int = 0
    about: object = None  # what else must be alike for strips to share a loop

    def unrolled(self) -> "Iterator[Strip]":
        """The strips one by one.

        Raises ValueError for more than a program should hold: the call gets an inferred price.
        """
        if self.repeat > MOST_UNROLLED:
            raise ValueError(f"{self.repeat} strips that no loop can stand for")
        for i in range(self.repeat):
            first, low = self.first + i * self.count, self.low + i * self.step
            yield replace(self, first=first, low=low, repeat=1, step=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One dimension of a windowed operator.

    Tap k of output o reads input o * stride + k * dilation - padding.
    """

    size: int
    out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def source(self, o: int, k: int) -> int:
        return o * self.stride + k * self.dilation - self.padding

    def valid(self, k: int, low: int, high: int) -> tuple[int, int]:
        """Outputs o for which tap k reads an input in low .. high - 1; first and one past last."""
        first = -(-(low - self.source(0, k)) // self.stride)
        last = (high - 1 - self.source(0, k)) // self.stride + 1
        first, last = max(0, first), min(self.out, last)
        return first, max(first, last)

    def forward(
        self, count: int, alike: Callable[[int], object] = lambda first: None
    ) -> list[Strip]:
        """Strips of `count` outputs; those that share a loop are `alike` too."""

        def strip(first: int, count: int) -> Strip:
            low = min(max(0, self.source(first, 0)), self.size - 1)
            high = self.source(first + count - 1, self.kernel - 1)
            taps = []
            for k in range(self.kernel):
                own, inside = self.inside(k, first, count)
                if inside:
                    there = self.source(first + own, k) - low
                    taps.append(Tap(k=k, own=own, there=there, count=inside))
            span = min(self.size - 1, max(high, low)) - low + 1
            return Strip(
                first=first, count=count, low=low, span=span, taps=tuple(taps), about=alike(first)
            )

        return _merged(strip, self.out, count)

    def backward(self, count: int) -> list[Strip]:
        """Strips of `count` inputs."""

        def strip(first: int, count: int) -> Strip:
            found = [(k, *self.valid(k, first, first + count)) for k in range(self.kernel)]
            found = [f for f in found if f[1] < f[2]]
            low = min((f[1] for f in found), default=0)
            high = max((f[2] for f in found), default=1)
            taps = tuple(
                Tap(k=k, own=self.source(begin, k) - first, there=begin - low, count=end - begin)
                for k, begin, end in found
            )
            return Strip(
                first=first, count=count, low=low, span=high - low, taps=taps,
                about=self.counts(low, high - low),
            )  # fmt: skip

        return _merged(strip, self.size, count)

    def inside(self, k: int, first: int, count: int) -> tuple[int, int]:
        """Of outputs first .., those whose tap k lies inside: (from which one, how many)."""
        begin, end = self.valid(k, 0, self.size)
        begin, end = max(begin, first), min(end, first + count)
        return begin - first, max(0, end - begin)

    def counts(self, first: int, count: int) -> tuple[tuple[int, int], ...]:
        """Runs of the outputs first .. with as many taps inside: (taps, how many outputs)."""
        inside = [self.valid(k, 0, self.size) for k in range(self.kernel)]
        last = first + count
        cuts = sorted({first, last, *(c for pair in inside for c in pair if first < c < last)})
        runs: list[tuple[int, int]] = []
        for low, high in pairwise(cuts):
            taps = sum(a <= low < b for a, b in inside)
            before = runs.pop()[1] if runs and runs[-1][0] == taps else 0
            runs.append((taps, before + high - low))
        return tuple(runs)


def _merged(strip: Callable[[int, int], Strip], length: int, count: int) -> list[Strip]:
    made: list[Strip] = []
    if length > count * MOST_STRIPS:
        raise ValueError(f"{length // count} strips of {count}")
    for first in range(0, length, count):
        new = strip(first, min(count, length - first))
        last = made[-1] if made else None
        if last and (new.count, new.span, new.taps, new.about) == (
            last.count, last.span, last.taps, last.about
        ):  # fmt: skip
            step = new.low - last.low if last.repeat == 1 else last.step
            if new.low == last.low + last.repeat * step:
                made[-1] = replace(last, repeat=last.repeat + 1, step=step)
                continue
        made.append(new)
    return made


def inside_together(strips: list[Strip], kernel: int) -> list[Strip]:
    """Only strips whose taps all lie inside share a loop."""
    inside = [len(s.taps) == kernel and all(t.count == s.count for t in s.taps) for s in strips]
    pairs = zip(strips, inside, strict=True)
    return [one for s, whole in pairs for one in ([s] if whole else s.unrolled())]


def windows_across(
    height: Axis, width: Axis, deep: int, row_bytes: Callable[[int, int], float], *, forward: bool
) -> list[Strip]:
    """The width as one strip of whole rows or, where SBUF does not hold the tiles of one row, in
    windows, one by one, of which neighbors share what they need.

    deep       planes of what is needed
    row_bytes  of a partition, for so many elements needed and made
    """
    reach = (height.kernel - 1) * height.dilation + (1 if forward else height.stride)
    if forward:
        rows, own, there = min(height.size, reach), width.out, width.size
    else:
        rows, own, there = min(height.out, -(-reach // height.stride)), width.size, width.out
    made = own if forward else own * height.stride
    columns, held = own, row_bytes(deep * rows * there, made)
    if held > ROW_BYTES:
        step = 1 if forward else width.stride
        columns = evenly(own, max(step, int(own * ROW_BYTES / 2 / held)), step)
    strips = width.forward(columns) if forward else width.backward(columns)
    if columns < own:
        return [one for s in strips for one in s.unrolled()]
    (one,) = strips
    taps = tuple(replace(t, there=t.there + one.low) for t in one.taps)
    return [replace(one, low=0, span=there, taps=taps)]


def check_products(axes: Iterable[list[Strip]], each: int) -> None:
    """Raises ValueError for more products than a program should hold, with `each` for every tap:
    the call gets an inferred price.
    """
    products = each * prod(sum(len(strip.taps) for strip in strips) for strips in axes)
    if products > MOST_PRODUCTS:
        raise ValueError(f"{products} products that no loop can stand for")


def taps_of(*strips: Strip) -> Iterator[tuple[Tap, ...]]:
    """Every combination of the strips' taps."""
    yield from product(*(s.taps for s in strips))
