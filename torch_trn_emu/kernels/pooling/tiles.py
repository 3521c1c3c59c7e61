"""What pooling programs have in common: strips of planes, and the positions in them.

Planes (a channel of an image) lie on partitions. Positions of maxima are compared with a counter
of the plane's positions, so the gradient needs no scattered writes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from ...isa import Access, Affine, Buffer, Builder, elements_of, partitions_of, rows_of
from ..limits import TILE_BYTES, P
from ..planes import several
from ..windows import Axis, Strip

__all__ = ["Pool", "PoolTiles", "planes_of"]

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
    """Strips of planes in SBUF: a pooling program derives from it."""

    def __init__(self, name: str, planes: int, spec: Pool, cores: int) -> None:
        self.planes, self.spec = ceil(planes / cores), spec
        self.b = Builder(f"{name} {spec.op} {planes} planes", cores=cores)
        self.sizes = tuple(a.size for a in spec.axes)
        self.outs = tuple(a.out for a in spec.axes)
        self.base: Buffer

    def strips(
        self, own: tuple[int, ...], there: tuple[int, ...], forward: bool
    ) -> list[list[Strip]]:
        """Of depth, height and width: one plane deep, whole rows, as many rows as fit."""
        depth, height, width = self.spec.axes
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

    def over(
        self, strips: list[list[Strip]], prepare: Callable[[Strip, Strip, Strip], None]
    ) -> Iterator[tuple[Strip, Strip, Strip, Affine, int, Affine]]:
        """(strips, first plane, planes, counter of the height's strips) for every tile of work."""
        b = self.b
        (wide,) = strips[2]
        self.low = wide.low
        for deep in strips[0]:
            for high in strips[1]:
                prepare(deep, high, wide)
                for p0, planes in b.tiles(self.planes, P):
                    self.start(deep, high)
                    with b.loop(high.repeat) as j:
                        yield deep, high, wide, p0, planes, j

    def start(self, deep: Strip, high: Strip) -> None:
        """What is set before the loop over the strips of the height."""

    def position(self, depth: int, row: int) -> None:
        """The number in its plane of a strip's first element, which moves on with the strips."""
        number = (depth * self.sizes[1] + row) * self.sizes[2]
        self.b.emit("memset", rows_of(self.base, P, 1), value=float(number))

    def move(
        self, hbm: Buffer, tile: Access, shape: tuple[int, ...], p0: Affine,
        deep: tuple[Affine, int], high: tuple[Affine, int], *, store: bool = False,
    ) -> None:  # fmt: skip
        """Rows of planes between memory and a tile."""
        plane, area, width = prod(shape), shape[1] * shape[2], shape[2]
        at, run = p0 * plane + deep[0] * area + high[0] * width, (1, high[1] * width)
        there = elements_of(hbm, (plane, tile.partitions), (area, deep[1]), run, at=at)
        if store:
            self.b.store(there, tile)
        else:
            self.b.load(tile, there)

    def counted(self, tile: Buffer, offset: int, *ranges: tuple[int, int]) -> None:
        """1 / (how many taps lie inside), for outputs (first, count) of depth, height, width."""
        b, axes = self.b, self.spec.counting or self.spec.axes
        width = ranges[2][1]
        ((deep, _),) = axes[0].counts(*ranges[0])
        whole = rows_of(tile, P, ranges[1][1] * width, offset)
        b.emit("memset", whole, value=0.0)
        for kh, kw in product(range(axes[1].kernel), range(axes[2].kernel)):
            y, rows = axes[1].inside(kh, *ranges[1])
            x, columns = axes[2].inside(kw, *ranges[2])
            if rows and columns:
                at = offset + y * width + x
                view = partitions_of(tile, P, (width, rows), (1, columns), at=at)
                b.emit("tensor_scalar", view, view, op0="add", imm0=float(deep))
        b.emit("reciprocal", whole, whole)


def planes_of(tile: Buffer, partitions: int, elements: int, outer: int) -> Access:
    """[partitions P, outer, elements / outer], as `PoolTiles.move` brings them."""
    each = elements // outer
    return partitions_of(tile, partitions, *several([(each, outer)]), (1, each))
