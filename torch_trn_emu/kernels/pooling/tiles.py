"""What pooling programs have in common: strips of planes, and the positions in them.

Planes (a channel of an image) lie on partitions. Positions of maxima are compared with a counter
of the plane's positions, so the gradient needs no scattered writes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from ...isa import Access, Affine, Buffer, Builder
from ..limits import TILE_BYTES, P
from ..planes import several
from ..windows import Axis, Strip

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


class PoolTiles:
    """Strips of planes in SBUF: a pooling program derives from it.

    own, there  sizes of what is made, and of what it is made of
    made, need  elements of a strip of each, at most
    """

    base: Buffer  # where the strip begins in its plane, if there are indices

    def __init__(self, name: str, planes: int, spec: Pool, cores: int, *, forward: bool) -> None:
        self.planes, self.spec = ceil(planes / cores), spec
        self.b = Builder(f"{name} {spec.op} {planes} planes", cores=cores)
        self.sizes = tuple(a.size for a in spec.axes)
        self.outs = tuple(a.out for a in spec.axes)
        self.own, self.there = (self.outs, self.sizes) if forward else (self.sizes, self.outs)
        self.kinds = self._strips(forward)
        deep, high, _ = self.kinds
        self.need = max(s.span for s in deep) * max(s.span for s in high) * self.there[2]
        self.made = max(s.count for s in high) * self.own[2]

    def _strips(self, forward: bool) -> list[list[Strip]]:
        """Of depth, height and width: one plane deep, whole rows, as many rows as fit."""
        depth, height, width = self.spec.axes
        own, there = self.own, self.there
        counting = self.spec.counting or self.spec.axes

        def of(axis: Axis, count: int) -> list[Strip]:
            if not forward:
                return axis.backward(count)
            counts = counting[self.spec.axes.index(axis)].counts
            return axis.forward(count, lambda first: counts(first, min(count, axis.out - first)))

        deep = [one for s in of(depth, 1) for one in s.unrolled()]
        span = max(s.span for s in deep)
        row = 4 * (span * there[2] * (height.stride if forward else 1) + own[2])
        rows = max(1, min(own[1], int(TILE_BYTES / row)))
        if not forward:
            rows = max(1, rows // height.stride) * height.stride
        return [deep, of(height, min(rows, own[1])), of(width, own[2])]

    def tile(self, name: str, elements: int, dtype: str, slots: int = 2) -> Buffer:
        return self.b.sbuf(name, elements, dtype, slots=slots)

    def over(self) -> Iterator[tuple[Strip, Strip, Strip, Affine, int, Affine]]:
        """(strips, first plane, planes, counter of the height's strips) for every tile of work."""
        b = self.b
        (wide,) = self.kinds[2]
        self.low = wide.low
        for deep, high in product(*self.kinds[:2]):
            self.prepare(deep, high)
            for p0, planes in b.tiles(self.planes, P):
                self.start(deep, high)
                with b.loop(high.repeat) as j:
                    yield deep, high, wide, p0, planes, j

    def prepare(self, deep: Strip, high: Strip) -> None:
        """What all strips of a kind share."""

    def start(self, deep: Strip, high: Strip) -> None:
        """What is set before the loop over the strips of the height."""

    def position(self, depth: int, row: int) -> None:
        """The number in its plane of a strip's first element, which moves on with the strips."""
        number = (depth * self.sizes[1] + row) * self.sizes[2]
        self.b.emit("memset", self.base.rows(P, 1), value=float(number))

    def bring(
        self, tile: Buffer, hbm: Buffer, p0: Affine, planes: int, deep: Strip, high: Strip,
        j: Affine,
    ) -> None:  # fmt: skip
        """What strip j is made of."""
        run = high.span * self.there[2]
        to = tile.lanes(planes, *several([(run, deep.span)]), (1, run))
        rows = j * high.step + high.low, high.span
        self.b.load(to, _rows(hbm, planes, self.there, p0, (deep.low, deep.span), rows))

    def put(
        self, hbm: Buffer, made: Access, p0: Affine, deep: Strip, high: Strip, j: Affine
    ) -> None:
        rows = j * high.count + high.first, high.count
        self.b.store(_rows(hbm, made.partitions, self.own, p0, (deep.first, 1), rows), made)

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
    hbm: Buffer, planes: int, shape: tuple[int, ...], p0: Affine, deep: tuple[int, int],
    high: tuple[Affine, int],
) -> Access:  # fmt: skip
    """Rows of planes in memory, each (first, how many)."""
    plane, area, width = prod(shape), shape[1] * shape[2], shape[2]
    at = p0 * plane + deep[0] * area + high[0] * width
    return hbm.box((plane, planes), (area, deep[1]), (1, high[1] * width), at=at)
