"""What pooling programs have in common: strips of planes, and the positions in them.

Planes (a channel of an image) lie on partitions; of fewer than 128 planes, bands of each do: strips
of its rows that are alike. Positions of maxima are compared with a counter of the positions in the
plane, so the gradient needs no scattered writes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, inf, prod

from ...isa import Access, Affine, Buffer, Builder
from ..bands import FIXED, TRANSFER, cut, planes_in_lanes
from ..limits import TILE_BYTES, P
from ..planes import several
from ..windows import Axis, Strip, windows_across

__all__ = ["Pool", "PoolTiles"]

Axes = tuple[Axis, Axis, Axis]  # depth, height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """op is "max" or "add"; an average divides by `divisor`, or by the taps counted by `counting`.

    counting  axes whose taps inside count: those of the input, or of the padded input
    """

    op: str
    axes: Axes
    divisor: float = 0.0
    counting: Axes | None = None
    indices: bool = False
    dtype: str = "float32"


class PoolTiles(ABC):
    """Strips of planes in SBUF: a pooling program derives from it.

    own, there  sizes of what is made, and of what it is made of
    made, need  elements of a strip of each, at most
    bands       strips of each plane that the partitions have, in the body of `over`
    """

    base: Buffer  # where the strip begins in its plane, if there are indices
    line: Buffer  # the same of a plane's bands, side by side
    bands: int

    def __init__(self, name: str, planes: int, spec: Pool, cores: int, *, forward: bool) -> None:
        self.planes, self.spec = ceil(planes / cores), spec
        self.b = Builder(f"{name} {spec.op} {planes} planes", cores=cores)
        self.sizes = tuple(a.size for a in spec.axes)
        self.outs = tuple(a.out for a in spec.axes)
        self.own, self.there = (self.outs, self.sizes) if forward else (self.sizes, self.outs)
        self.forward = forward
        groups = planes_in_lanes(self.planes, self._takes)
        self.groups = [(group, self._strips(group.lanes)) for group in groups]
        every = [kinds for _, kinds in self.groups]
        self.need = max(prod(max(s.span for s in strips) for strips in kinds) for kinds in every)
        self.made = max(prod(max(s.count for s in strips) for strips in kinds[1:])
                        for kinds in every)  # fmt: skip

    def _takes(self, bands: int) -> float:
        """Cycles of the taps of planes in so many bands, roughly, with the waits for transfers."""
        if bands // 2 >= self.own[1]:
            return inf
        deep, high, wide = self._strips(bands)
        places = self.spec.op == "max" and (self.spec.indices or not self.forward)
        taps = (3 if places else 1) * sum(len(s.taps) for s in deep)
        return sum(
            ceil(s.repeat / bands)
            * (taps * len(s.taps) * len(w.taps) * (FIXED + 2 * s.count * w.count) + TRANSFER)
            for s, w in product(high, wide)
        )

    @abstractmethod
    def row_bytes(self, need: int, made: int) -> float:
        """Bytes of a partition for so many elements needed and made."""

    def _strips(self, bands: int) -> list[list[Strip]]:
        """Of depth, height and width: one plane deep, whole rows, as many as fit and a band has.

        Rows that do not fit are cut in windows.
        """
        depth, height, width = self.spec.axes
        own = self.own
        counting = self.spec.counting or self.spec.axes

        def of(axis: Axis, count: int) -> list[Strip]:
            if not self.forward:
                return axis.backward(count)
            counts = counting[self.spec.axes.index(axis)].counts
            return axis.forward(count, lambda first: counts(first, min(count, axis.out - first)))

        deep = [one for s in of(depth, 1) for one in s.unrolled()]
        span = max(s.span for s in deep)
        wide = windows_across(height, width, span, self.row_bytes, forward=self.forward)
        columns = max(s.span for s in wide), max(s.count for s in wide)
        row = 4 * (span * columns[0] * (height.stride if self.forward else 1) + columns[1])
        rows = max(1, min(ceil(own[1] / bands), int(TILE_BYTES / row)))
        if not self.forward:
            rows = max(1, rows // height.stride) * height.stride
        return [deep, of(height, min(rows, own[1])), wide]

    def tile(self, name: str, elements: int, dtype: str, slots: int = 2) -> Buffer:
        return self.b.sbuf(name, elements, dtype, slots=slots)

    def over(self) -> Iterator[tuple[Strip, Strip, Strip, Affine, int, Affine]]:
        """(strips, first plane, partitions, the first one's strip of the height) of each tile."""
        b = self.b
        for group, kinds in self.groups:
            lanes = P // min(group.count, P)
            for deep, high, wide in product(*kinds):
                self.prepare(deep, high, wide)
                for p0, planes in b.tiles(group.count, P):
                    for first, times, self.bands in cut(high.repeat, lanes):
                        self.start(deep, high, wide, planes, first)
                        with b.loop(times) as i:
                            j, p = i * self.bands + first, p0 + group.first
                            yield deep, high, wide, p, planes * self.bands, j

    @abstractmethod
    def prepare(self, deep: Strip, high: Strip, wide: Strip) -> None:
        """What all strips of a kind share."""

    @abstractmethod
    def start(self, deep: Strip, high: Strip, wide: Strip, planes: int, strip: int) -> None:
        """What is set before the loop over the strips of the height, from number `strip` on."""

    def count_on(self, tile: Buffer, offset: int, rows: int, columns: int, base: int) -> None:
        """Positions of `rows` x `columns` elements of a plane, the first one's being `base`."""
        width = self.sizes[2]
        if columns == width:
            rows, columns = 1, rows * columns
        for row in range(rows):
            view = tile.rows(P, columns, offset + row * columns)
            self.b.emit("iota", view, channel=0, step=1, base=base + row * width)

    def position(self, depth: int, row: int, column: int, step: int, planes: int) -> None:
        """The number in its plane of a strip's first element, `step` rows after the one before."""
        width, b = self.sizes[2], self.b
        number = (depth * self.sizes[1] + row) * width + column
        if self.bands == 1:
            b.emit("memset", self.base.rows(P, 1), value=float(number))
            return
        line = self.line.rows(1, self.bands)
        b.emit("iota", line, channel=0, step=step * width, base=number)
        every = self.line.box((self.line.row_elements, 1), (0, planes), (1, self.bands))
        b.emit("dma_copy", self.base.rows(planes * self.bands, 1), every, queue="join")

    def move_on(self, partitions: int, step: int) -> None:
        """The positions of the next strips, `step` rows after each other."""
        base = self.base.rows(partitions, 1)
        by = float(self.bands * step * self.sizes[2])
        self.b.emit("tensor_scalar", base, base, op0="add", imm0=by)

    def bring(
        self, tile: Buffer, hbm: Buffer, p0: Affine, partitions: int, deep: Strip, high: Strip,
        wide: Strip, j: Affine,
    ) -> None:  # fmt: skip
        """What the strips from j on are made of."""
        run = high.span * wide.span
        to = tile.lanes(partitions, *several([(run, deep.span)]), (1, run))
        rows = j * high.step + high.low, high.span, high.step
        planes = partitions // self.bands, self.bands
        columns = wide.low, wide.span
        self.b.load(to, _rows(hbm, planes, self.there, p0, (deep.low, deep.span), rows, columns))

    def put(
        self, hbm: Buffer, made: Access, p0: Affine, deep: Strip, high: Strip, wide: Strip,
        j: Affine,
    ) -> None:  # fmt: skip
        rows = j * high.count + high.first, high.count, high.count
        planes = made.partitions // self.bands, self.bands
        columns = wide.first, wide.count
        self.b.store(_rows(hbm, planes, self.own, p0, (deep.first, 1), rows, columns), made)

    def counted(self, tile: Buffer, offset: int, *ranges: tuple[int, int]) -> None:
        """1 / (how many taps lie inside), for outputs (first, count) of depth, height, width."""
        b, axes = self.b, self.spec.counting or self.spec.axes
        width = ranges[2][1]
        ((deep, _),) = axes[0].counts(*ranges[0])
        whole = tile.rows(P, ranges[1][1] * width, offset)
        b.emit("memset", whole, value=0.0)
        for kh, kw in product(range(axes[1].kernel), range(axes[2].kernel)):
            y, rows = axes[1].inside(kh, *ranges[1])
            x, columns = axes[2].inside(kw, *ranges[2])
            if rows and columns:
                at = offset + y * width + x
                view = tile.lanes(P, (width, rows), (1, columns), at=at)
                b.emit("tensor_scalar", view, view, op0="add", imm0=float(deep))
        b.emit("reciprocal", whole, whole)


def _rows(
    hbm: Buffer, planes: tuple[int, int], shape: tuple[int, ...], p0: Affine,
    deep: tuple[int, int], high: tuple[Affine, int, int], columns: tuple[int, int],
) -> Access:  # fmt: skip
    """Rows of planes in memory: (planes, bands), (first, how many), and from band to band."""
    plane, area, width = prod(shape), shape[1] * shape[2], shape[2]
    at = p0 * plane + deep[0] * area + high[0] * width + columns[0]
    bands = ((high[2] * width, planes[1]),) if planes[1] > 1 else ()
    whole = columns[1] == width
    inner = [(1, high[1] * width)] if whole else [(width, high[1]), (1, columns[1])]
    return hbm.box((plane, planes[0]), *bands, (area, deep[1]), *inner, at=at)
