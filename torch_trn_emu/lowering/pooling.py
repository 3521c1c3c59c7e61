"""Pooling as windowed accesses on the Vector engine: one pass a tap, over strided views in SBUF.

Planes (a channel of an image) lie on partitions. Positions of maxima are compared with a counter
of the plane's positions, so the gradient needs no scattered writes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, inf, prod

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from .windows import Axis, Strip, Tap, taps_of

__all__ = ["Pool", "pool", "pool_backward"]

P = 128
TILE_BYTES = 16 * 1024  # of what a strip needs, per partition
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


def pool(planes: int, how: Pool, *, chip: Chip, cores: int = 1) -> Program:
    """Y of [planes, out...] from x of [planes, size...]; "indices" too if asked for."""
    return _Forward(planes, how, chip, cores).build()


def pool_backward(planes: int, how: Pool, *, chip: Chip, cores: int = 1) -> Program:
    """Dx from g (and "indices" for a maximum)."""
    return _Backward(planes, how, chip, cores).build()


class _Pool:
    def __init__(self, name: str, planes: int, how: Pool, chip: Chip, cores: int) -> None:
        self.planes, self.how = ceil(planes / cores), how
        self.b = Builder(f"{name} {how.op} {planes} planes", cores=cores)
        self.sizes = tuple(a.size for a in how.axes)
        self.outs = tuple(a.out for a in how.axes)
        self.base: Buffer

    def strips(
        self, own: tuple[int, ...], there: tuple[int, ...], forward: bool
    ) -> list[list[Strip]]:
        """Of depth, height and width: one plane deep, whole rows, as many rows as fit."""
        depth, height, width = self.how.axes
        counting = self.how.counting or self.how.axes

        def of(axis: Axis, count: int) -> list[Strip]:
            if not forward:
                return axis.backward(count)
            counts = counting[self.how.axes.index(axis)].counts
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
        one = Access(buffer=self.base, pattern=((1, P), (1, 1)))
        number = (depth * self.sizes[1] + row) * self.sizes[2]
        self.b.emit("memset", one, value=float(number))

    def move(
        self, hbm: Buffer, tile: Access, shape: tuple[int, ...], p0: Affine,
        deep: tuple[Affine, int], high: tuple[Affine, int], *, store: bool = False,
    ) -> None:  # fmt: skip
        """Rows of planes between memory and a tile."""
        plane, area, width = prod(shape), shape[1] * shape[2], shape[2]
        offset = p0 * plane + deep[0] * area + high[0] * width
        pattern = ((plane, tile.partitions), (area, deep[1]), (1, high[1] * width))
        there = Access(buffer=hbm, offset=offset, pattern=pattern)
        if store:
            self.b.store(there, tile)
        else:
            self.b.load(tile, there)

    def counted(self, tile: Buffer, offset: int, *ranges: tuple[int, int]) -> None:
        """1 / (how many taps lie inside), for outputs (first, count) of depth, height, width."""
        b, axes = self.b, self.how.counting or self.how.axes
        row, width = tile.row_elements, ranges[2][1]
        (deep,) = axes[0].counts(*ranges[0])
        whole = Access(buffer=tile, offset=Affine(offset),
                       pattern=((row, P), (1, ranges[1][1] * width)))  # fmt: skip
        b.emit("memset", whole, value=0.0)
        for kh, kw in product(range(axes[1].kernel), range(axes[2].kernel)):
            y, rows = axes[1].inside(kh, *ranges[1])
            x, columns = axes[2].inside(kw, *ranges[2])
            if rows and columns:
                pattern = ((row, P), (width, rows), (1, columns))
                at = Affine(offset + y * width + x)
                view = Access(buffer=tile, offset=at, pattern=pattern)
                b.emit("tensor_scalar", view, view, op0="add", imm0=float(deep))
        b.emit("reciprocal", whole, whole)


class _Forward(_Pool):
    def __init__(self, planes: int, how: Pool, chip: Chip, cores: int) -> None:
        super().__init__("pool", planes, how, chip, cores)
        b, dtype = self.b, how.dtype
        self.kinds = self.strips(self.outs, self.sizes, True)
        spans = [max(s.span for s in kind) for kind in self.kinds]
        rows = max(s.count for s in self.kinds[1])
        self.need, self.made = spans[0] * spans[1] * self.sizes[2], rows * self.outs[2]
        self.x = b.hbm("x", (self.planes, *self.sizes), dtype, Role.INPUT)
        self.y = b.hbm("y", (self.planes, *self.outs), dtype, Role.OUTPUT)
        held = dtype if how.op == "max" else "float32"
        self.data, self.best = (
            self.tile("data", self.need, dtype),
            self.tile("best", self.made, held),
        )
        self.result = (
            self.best
            if held == dtype and how.op == "max"
            else self.tile("result", self.made, dtype)
        )
        if how.indices:
            self.index = b.hbm("indices", (self.planes, *self.outs), "int32", Role.OUTPUT)
            self.where = self.tile("positions", self.need, "float32", 1)
            self.mask, self.at = (
                self.tile("mask", self.made, "float32"),
                self.tile("at", self.made, "float32"),
            )
            self.found = self.tile("found", self.made, "int32")
            self.base = self.tile("base", 1, "float32", 1)
        if how.op == "add" and not how.divisor:
            self.inverse = self.tile("inverse", self.made, "float32", 1)

    def build(self) -> Program:
        b, how = self.b, self.how
        for deep, high, wide, p0, planes, j in self.over(self.kinds, self.prepare):
            b.fresh(self.data, self.best, *([self.result] if self.result is not self.best else []))
            low_d, low_h = Affine(deep.low), j * high.step + high.low
            tile = flat(self.data, planes, deep.span * high.span * self.sizes[2], deep.span)
            self.move(self.x, tile, self.sizes, p0, (low_d, deep.span), (low_h, high.span))
            count = high.count * self.outs[2]
            best = flat(self.best, planes, count)
            b.emit("memset", best, value=-inf if how.op == "max" else 0.0)
            if how.indices:
                b.fresh(self.mask, self.at, self.found)
                b.emit("memset", flat(self.at, planes, count), value=0.0)
            for taps in taps_of(deep, high, wide):
                self._tap(taps, planes, high.span)
            done = self._finish(planes, count)
            first = Affine(deep.first), j * high.count + high.first
            where = (first[0], 1), (first[1], high.count)
            self.move(self.y, done, self.outs, p0, *where, store=True)
            if how.indices:
                found, at = flat(self.found, planes, count), flat(self.at, planes, count)
                base = Access(buffer=self.base, pattern=((1, planes), (1, 1)))
                b.emit("tensor_scalar", found, at, base, op0="add")
                self.move(self.index, found, self.outs, p0, *where, store=True)
                step = float(high.step * self.sizes[2])
                b.emit("tensor_scalar", base, base, op0="add", imm0=step)
        return b.build()

    def prepare(self, deep: Strip, high: Strip, wide: Strip) -> None:
        """What all strips of a kind share: positions, or what the average divides by."""
        width = self.sizes[2]
        if self.how.indices:
            for d in range(deep.span):
                view = Access(
                    buffer=self.where,
                    offset=Affine(d * high.span * width),
                    pattern=((self.where.row_elements, P), (1, high.span * width)),
                )
                self.b.emit("iota", view, channel=0, step=1, base=d * self.sizes[1] * width)
        if self.how.op == "add" and not self.how.divisor:
            ranges = ((deep.first, 1), (high.first, high.count), (0, self.outs[2]))
            self.counted(self.inverse, 0, *ranges)

    def start(self, deep: Strip, high: Strip) -> None:
        if self.how.indices:
            self.position(deep.low, high.low)

    def _tap(self, taps: tuple[Tap, ...], planes: int, rows_held: int) -> None:
        b, (d, h, w) = self.b, taps
        axes, width, outs = self.how.axes, self.sizes[2], self.outs[2]
        offset = (d.there * rows_held + h.there) * width + self.low + w.there
        shape = ((axes[1].stride * width, h.count), (axes[2].stride, w.count))
        own = ((outs, h.count), (1, w.count))

        def view(buffer: Buffer, at: int, inner: tuple[tuple[int, int], ...]) -> Access:
            pattern = ((buffer.row_elements, planes), *inner)
            return Access(buffer=buffer, offset=Affine(at), pattern=pattern)

        x, best = view(self.data, offset, shape), view(self.best, h.own * outs + w.own, own)
        if self.how.indices:
            mask = view(self.mask, h.own * outs + w.own, own)
            at = view(self.at, h.own * outs + w.own, own)
            b.emit("tensor_tensor", mask, x, best, op="greater")
            b.emit("select", at, mask, view(self.where, offset, shape), at)
        b.emit("tensor_tensor", best, best, x, op=self.how.op)

    def _finish(self, planes: int, count: int) -> Access:
        b, best = self.b, flat(self.best, planes, count)
        if self.how.op == "max":
            return best
        done = flat(self.result, planes, count)
        if self.how.divisor:
            b.emit("tensor_scalar", done, best, op0="multiply", imm0=1 / self.how.divisor)
        else:
            b.emit("tensor_tensor", done, best, flat(self.inverse, planes, count), op="multiply")
        return done


class _Backward(_Pool):
    def __init__(self, planes: int, how: Pool, chip: Chip, cores: int) -> None:
        super().__init__("pool_backward", planes, how, chip, cores)
        b, dtype = self.b, how.dtype
        self.kinds = self.strips(self.sizes, self.outs, False)
        spans = [max(s.span for s in kind) for kind in self.kinds]
        self.need = spans[0] * spans[1] * self.outs[2]
        self.made = max(s.count for s in self.kinds[1]) * self.sizes[2]
        self.g = b.hbm("g", (self.planes, *self.outs), dtype, Role.INPUT)
        self.dx = b.hbm("dx", (self.planes, *self.sizes), dtype, Role.OUTPUT)
        self.data = self.tile("data", self.need, dtype)
        self.sum, self.result = (
            self.tile("sum", self.made, "float32"),
            self.tile("result", self.made, dtype),
        )
        self.work = self.tile("work", self.need, "float32")
        if how.op == "max":
            self.index = b.hbm("indices", (self.planes, *self.outs), "int32", Role.INPUT)
            self.found, self.at = (
                self.tile("found", self.need, "int32"),
                self.tile("at", self.need, "float32"),
            )
            self.where = self.tile("positions", self.made, "float32", 1)
            self.base = self.tile("base", 1, "float32", 1)
        elif not how.divisor:
            self.inverse = self.tile("inverse", self.need, "float32", 1)

    def build(self) -> Program:
        b, how = self.b, self.how
        for deep, high, wide, p0, planes, j in self.over(self.kinds, self.prepare):
            low = (Affine(deep.low), deep.span), (j * high.step + high.low, high.span)
            count, need = high.count * self.sizes[2], deep.span * high.span * self.outs[2]
            b.fresh(self.data, self.sum, self.result, self.work)
            self.move(self.g, flat(self.data, planes, need, deep.span), self.outs, p0, *low)
            b.emit("memset", flat(self.sum, planes, count), value=0.0)
            g = self.data
            if how.op == "max":
                b.fresh(self.found, self.at)
                self.move(
                    self.index, flat(self.found, planes, need, deep.span), self.outs, p0, *low
                )
                base = Access(buffer=self.base, pattern=((1, planes), (1, 1)))
                at = flat(self.at, planes, need)
                b.emit("tensor_scalar", at, flat(self.found, planes, need), base, op0="subtract")
            else:
                g = self.work
                self._shares(planes, need)
            for taps in taps_of(deep, high, wide):
                self._tap(taps, g, planes, high.span)
            done = flat(self.result, planes, count)
            b.emit("tensor_copy", done, flat(self.sum, planes, count))
            first = Affine(deep.first), j * high.count + high.first
            where = (first[0], 1), (first[1], high.count)
            self.move(self.dx, done, self.sizes, p0, *where, store=True)
            if how.op == "max":
                step = float(high.count * self.sizes[2])
                b.emit("tensor_scalar", base, base, op0="add", imm0=step)
        return b.build()

    def prepare(self, deep: Strip, high: Strip, wide: Strip) -> None:
        if self.how.op == "max":
            view = flat(self.where, P, high.count * self.sizes[2])
            self.b.emit("iota", view, channel=0, step=1, base=0)
        elif not self.how.divisor:
            width = self.outs[2]
            for d in range(deep.span):
                ranges = ((deep.low + d, 1), (high.low, high.span), (0, width))
                self.counted(self.inverse, d * high.span * width, *ranges)

    def start(self, deep: Strip, high: Strip) -> None:
        if self.how.op == "max":
            self.position(deep.first, high.first)

    def _shares(self, planes: int, need: int) -> None:
        """The gradient that each tap of a window gets."""
        to, g = flat(self.work, planes, need), flat(self.data, planes, need)
        if self.how.divisor:
            self.b.emit("tensor_scalar", to, g, op0="multiply", imm0=1 / self.how.divisor)
        else:
            inverse = flat(self.inverse, planes, need)
            self.b.emit("tensor_tensor", to, g, inverse, op="multiply")

    def _tap(self, taps: tuple[Tap, ...], g: Buffer, planes: int, rows_held: int) -> None:
        b, (d, h, w) = self.b, taps
        axes, width, outs = self.how.axes, self.sizes[2], self.outs[2]
        offset = (d.there * rows_held + h.there) * outs + self.low + w.there
        inner = ((outs, h.count), (1, w.count))
        own = ((axes[1].stride * width, h.count), (axes[2].stride, w.count))

        def view(buffer: Buffer, at: int, inner: tuple[tuple[int, int], ...]) -> Access:
            pattern = ((buffer.row_elements, planes), *inner)
            return Access(buffer=buffer, offset=Affine(at), pattern=pattern)

        into, share = view(self.sum, h.own * width + w.own, own), view(g, offset, inner)
        if self.how.op == "max":
            hit = view(self.work, offset, inner)
            here = view(self.where, h.own * width + w.own, own)
            b.emit("tensor_tensor", hit, view(self.at, offset, inner), here, op="equal")
            b.emit("tensor_tensor", hit, hit, share, op="multiply")
            share = hit
        b.emit("tensor_tensor", into, into, share, op="add")


def flat(buffer: Buffer, partitions: int, elements: int, outer: int = 1) -> Access:
    row = buffer.row_elements
    each = elements // outer
    inner = ((each, outer), (1, each)) if outer > 1 else ((1, elements),)
    return Access(buffer=buffer, pattern=((row, partitions), *inner))
