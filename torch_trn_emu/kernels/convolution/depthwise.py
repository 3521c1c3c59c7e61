"""Depthwise convolution on the Vector engine: one input channel a group uses one row of the array.

Channels lie on partitions and each tap is one multiply and add over a strided view (chosen: with
all 128 lanes at work this takes less time than a matmul of one row a channel). Of fewer channels
several images, or bands of rows that are alike, have partitions of their own. `Convolution`
describes the forward pass; `filters` is how many of them a channel has.
"""

from collections.abc import Iterator
from itertools import product
from math import ceil, inf, prod
from typing import NamedTuple

from ...chip import Chip
from ...isa import Access, Affine, Buffer, Builder, Program, Role, itemsize
from ..bands import FIXED, LANES, TRANSFER, cut, planes_in_lanes
from ..limits import TILE_BYTES, P
from ..planes import several
from ..windows import Strip, Tap, taps_of, windows_across
from .shape import Convolution, evacuate

__all__ = ["depthwise", "depthwise_input", "depthwise_weight"]


def depthwise(spec: Convolution, *, chip: Chip, cores: int = 1) -> Program:
    """out[b, c, q, :] = the sum over the taps of in[b, c, shifted] * weight[c, q, taps] + bias."""
    return _Depthwise("depthwise", spec, chip, cores, forward=True).forward()


def depthwise_input(spec: Convolution, *, chip: Chip, cores: int = 1) -> Program:
    """dx[b, c, :] = the sum over q and the taps of g[b, c, q, shifted] * weight[c, q, taps]."""
    return _Depthwise("depthwise_input", spec, chip, cores, forward=False).input()


def depthwise_weight(spec: Convolution, *, chip: Chip, cores: int = 1) -> Program:
    """dw[c, q, taps] = the sum over b and the pixels of g[b, c, q, :] * x[b, c, shifted]."""
    return _Depthwise("depthwise_weight", spec, chip, cores, forward=True).weight_gradient()


class _At(NamedTuple):
    """Strips on partitions at once: of images, bands and channels, in this order.

    channel   the first image's first channel
    low       the first row needed, and `first` made, of the first band
    elements  of a channel of a strip
    """

    channel: Affine
    deep: Strip
    high: Strip
    wide: Strip
    low: Affine
    first: Affine
    elements: int
    images: int
    bands: int
    channels: int

    @property
    def partitions(self) -> int:
        return self.images * self.bands * self.channels


class _Way(NamedTuple):
    """How channels use their lanes: images and bands at once, and strips of the height."""

    images: int
    bands: int
    high: list[Strip]


class _Depthwise:
    def __init__(
        self, name: str, spec: Convolution, chip: Chip, cores: int, *, forward: bool
    ) -> None:
        self.spec = spec
        self.b = Builder(f"{name} {spec.groups}", cores=cores, model_flops=spec.flops)
        depth, height, width = spec.axes
        self.own, self.there = (spec.outs, spec.sizes) if forward else (spec.sizes, spec.outs)
        self.is_forward = forward
        deep = depth.forward(1) if forward else depth.backward(1)
        self.deep = [one for s in deep for one in s.unrolled()]
        self.span = max(s.span for s in self.deep)
        sizes = itemsize(spec.compute), max(itemsize(spec.compute), itemsize(spec.dtype))
        self.windows = windows_across(
            height, width, self.span, lambda n, m: 2 * n * sizes[0] + 2 * m * (4 + sizes[1]),
            forward=forward,
        )  # fmt: skip
        self.widths = max(s.count for s in self.windows), max(s.span for s in self.windows)
        ways = {n: self._ways(n) for n in LANES}
        groups = planes_in_lanes(spec.groups, lambda n: min(map(self._takes, ways[n]), default=inf))
        self.groups = [(g, self._best(P // min(g.count, P), ways[g.lanes])) for g in groups]
        every = [s for _, way in self.groups for s in way.high]
        self.need = self.span * max(s.span for s in every) * self.widths[1]
        self.made = max(s.count for s in every) * self.widths[0]

    def _ways(self, lanes: int) -> list[_Way]:
        """Lanes as images, and the rest as bands of rows, as high as fit."""
        height = self.spec.axes[1]
        row = 4 * (
            self.widths[0] + self.span * self.widths[1] * (height.stride if self.is_forward else 1)
        )
        found = []
        for images in {min(n, lanes, self.spec.batch) for n in LANES}:
            bands = lanes // images
            if bands > 1 and bands // 2 >= self.own[1]:
                continue
            rows = max(1, min(ceil(self.own[1] / bands), int(TILE_BYTES / row)))
            if not self.is_forward:
                rows = max(1, rows // height.stride) * height.stride
            rows = min(rows, self.own[1])
            high = height.forward(rows) if self.is_forward else height.backward(rows)
            found.append(_Way(images, bands, high))
        return found

    def _takes(self, way: _Way) -> float:
        """Cycles of the taps, roughly, with the waits for transfers."""
        taps = self.spec.filters * sum(len(s.taps) for s in self.deep)
        return ceil(self.spec.batch / way.images) * sum(
            ceil(s.repeat / way.bands)
            * (taps * len(s.taps) * len(w.taps) * (FIXED + 2 * s.count * w.count) + TRANSFER)
            for s, w in product(way.high, self.windows)
        )

    def _best(self, lanes: int, ways: list[_Way]) -> _Way:
        """The fastest way; lanes beyond those it was made for take more images or bands."""
        way = min(ways, key=self._takes)
        images = min(self.spec.batch, lanes // way.bands)
        return way._replace(images=images, bands=lanes // images)

    # --- memory ---

    def hbm(self, name: str, shape: tuple[int, ...], many: int, role: Role) -> Buffer:
        spec = self.spec
        return self.b.hbm(name, (spec.batch, spec.groups * many, *shape), spec.dtype, role)

    def tile(self, name: str, elements: int, dtype: str = "float32") -> Buffer:
        return self.b.sbuf(name, elements, dtype, slots=2)

    def weights(self) -> tuple[Buffer, Buffer]:
        spec = self.spec
        count = spec.filters * spec.taps
        hbm = self.b.hbm("weight", (spec.groups, count), spec.dtype, Role.WEIGHT)
        return hbm, self.tile("weights", count, spec.compute)

    def place(
        self, hbm: Buffer, shape: tuple[int, ...], many: int, at: _At, q: int,
        depth: tuple[int, int], rows: tuple[Affine, int, int], columns: tuple[int, int],
    ) -> Access:  # fmt: skip
        """Rows of filter q: (the first one, how many, from band to band); of them some columns."""
        volume, (_, height, width) = prod(shape), shape
        here = (at.channel * many + q) * volume + depth[0] * height * width + rows[0] * width
        here += columns[0]
        lanes = several(
            [(self.spec.groups * many * volume, at.images), (rows[2] * width, at.bands)]
        )
        run = [(1, rows[1] * width)] if columns[1] == width else [(width, rows[1]), (1, columns[1])]
        planes = height * width, depth[1]
        return hbm.box(*lanes, (many * volume, at.channels), planes, *run, at=here)

    def shaped(self, tile: Buffer, size: int, depth: int, elements: int) -> Access:
        return tile.lanes(size, (elements, depth), (1, elements))

    def views(
        self, taps: tuple[Tap, ...], own: Buffer, there: Buffer, at: _At, *, forward: bool
    ) -> tuple[Access, Access]:  # fmt: skip
        """The tap's positions of its own and of the other side."""
        d, h, w = taps
        steps = self.spec.axes[1].stride, self.spec.axes[2].stride
        wide, other, size = at.wide.count, at.wide.span, at.partitions
        apart, tight = (steps[0], steps[1]), (1, 1)
        mine, its = (tight, apart) if forward else (apart, tight)
        begin = (d.there * at.high.span + h.there) * other + w.there
        a = (mine[0] * wide, h.count), (mine[1], w.count)
        c = (its[0] * other, h.count), (its[1], w.count)
        here = own.lanes(size, *a, at=h.own * wide + w.own)
        return here, there.lanes(size, *c, at=begin)

    def number(self, taps: tuple[Tap, ...]) -> int:
        _, height, width = self.spec.kernel
        return (taps[0].k * height + taps[1].k) * width + taps[2].k

    def column(self, tile: Buffer, size: int, at: int) -> Access:
        return tile.rows(size, 1, at)

    # --- passes ---

    def tiles(self) -> Iterator[tuple[_Way, Affine, int, int]]:
        """(how lanes are used, first channel, channels, partitions) of tiles of channels."""
        for group, way in self.groups:
            for c0, channels in self.b.tiles(group.count, P):
                yield way, c0 + group.first, channels, channels * way.images * way.bands

    def strips(self, way: _Way, c0: Affine, channels: int) -> Iterator[_At]:
        """All images and strips of channels `c0` ..; the body of `for` is emitted for each kind."""
        for n, images in self.b.tiles(self.spec.batch, way.images):
            channel = n * self.spec.groups + c0
            for deep, high, wide in product(self.deep, way.high, self.windows):
                for start, times, bands in cut(high.repeat, way.bands):
                    with self.b.loop(times) as i:
                        j, elements = i * bands + start, high.count * wide.count
                        low, first = j * high.step + high.low, j * high.count + high.first
                        yield _At(
                            channel, deep, high, wide, low, first, elements, images, bands,
                            channels,
                        )  # fmt: skip

    def forward(self) -> Program:
        b, spec, many = self.b, self.spec, self.spec.filters
        x = self.hbm("in", spec.sizes, 1, Role.INPUT)
        weight, held_weight = self.weights()
        out = self.hbm("out", spec.outs, many, Role.OUTPUT)
        data, total = self.tile("data", self.need, spec.compute), self.tile("sum", self.made)
        result = self.tile("result", self.made, spec.dtype)
        if spec.bias:
            bias = b.hbm("bias", (spec.groups, many), spec.bias, Role.INPUT)
            added = self.tile("bias of channels", many, spec.bias)
        for way, c0, channels, held in self.tiles():
            self._load_all(held_weight, weight, c0, channels, held)
            if spec.bias:
                self._load_all(added, bias, c0, channels, held)
            for at in self.strips(way, c0, channels):
                size = at.partitions
                self._bring(data, x, 1, 0, at)
                for q in range(many):
                    b.fresh(total, result)
                    start, done = (t.rows(size, at.elements) for t in (total, result))
                    b.emit("memset", start, value=0.0)
                    self._add_taps(total, data, held_weight, size, q, at, forward=True)
                    evacuate(b, done, start, self.column(added, size, q) if spec.bias else None)
                    self._put(result, out, many, q, at)
        return b.build()

    def input(self) -> Program:
        b, spec, many = self.b, self.spec, self.spec.filters
        g = self.hbm("g", spec.outs, many, Role.INPUT)
        weight, held_weight = self.weights()
        dx = self.hbm("dx", spec.sizes, 1, Role.OUTPUT)
        data, total = self.tile("data", self.need, spec.compute), self.tile("sum", self.made)
        result = self.tile("result", self.made, spec.dtype)
        for way, c0, channels, held in self.tiles():
            self._load_all(held_weight, weight, c0, channels, held)
            for at in self.strips(way, c0, channels):
                size = at.partitions
                b.fresh(total, result)
                whole = total.rows(size, at.elements)
                b.emit("memset", whole, value=0.0)
                for q in range(many):
                    self._bring(data, g, many, q, at)
                    self._add_taps(total, data, held_weight, size, q, at, forward=False)
                b.emit("tensor_copy", result.rows(size, at.elements), whole)
                self._put(result, dx, 1, 0, at)
        return b.build()

    def weight_gradient(self) -> Program:
        b, spec, many = self.b, self.spec, self.spec.filters
        g = self.hbm("g", spec.outs, many, Role.INPUT)
        x = self.hbm("x", spec.sizes, 1, Role.INPUT)
        count = many * spec.taps
        dw = b.hbm("dw", (spec.groups, count), spec.dtype, Role.OUTPUT)
        data = self.tile("data", self.need, spec.compute)
        given = self.tile("gradient", self.made, spec.compute)
        made = self.tile("product", self.made)
        sums, each = self.tile("sums", count), self.tile("each", 1)
        for way, c0, channels, held in self.tiles():
            b.fresh(sums)
            b.emit("memset", sums.rows(held, count), value=0.0)
            for at in self.strips(way, c0, channels):
                size = at.partitions
                self._bring(data, x, 1, 0, at)
                for q in range(many):
                    b.fresh(given)
                    b.load(self.shaped(given, size, 1, at.elements), self._made(g, many, q, at))
                    for taps in taps_of(at.deep, at.high, at.wide):
                        a, c = self.views(taps, given, data, at, forward=True)
                        b.fresh(made, each)
                        _, h, w = taps
                        to = made.rows(size, h.count * w.count)
                        b.emit("tensor_tensor", to, a, c, op="multiply")
                        b.emit("tensor_reduce", each.rows(size, 1), to, op="add")
                        to = self.column(sums, size, q * spec.taps + self.number(taps))
                        b.emit("tensor_tensor", to, to, each.rows(size, 1), op="add")
            self._store_sums(dw, sums, c0, channels, held)
        return b.build()

    def _store_sums(self, dw: Buffer, sums: Buffer, c0: Affine, channels: int, held: int) -> None:
        """A channel's sums of all lanes added up."""
        b, count, lanes = self.b, sums.row_elements, held // channels
        result = self.tile("result", count, self.spec.dtype)
        total = sums.rows(channels, count)
        if lanes > 1:
            joined = self.tile("sums of lanes", lanes * count)
            source = sums.box((count, channels), (channels * count, lanes), (1, count))
            b.emit("dma_copy", joined.rows(channels, lanes * count), source, queue="join")
            every = joined.lanes(channels, (1, count), (count, lanes))
            total = joined.rows(channels, count)
            b.emit("tensor_reduce", total, every, op="add")
        b.emit("tensor_copy", result.rows(channels, count), total)
        b.store(dw.rows(channels, count, c0 * count), result.rows(channels, count))

    # --- their parts ---

    def _load_all(self, tile: Buffer, hbm: Buffer, c0: Affine, channels: int, held: int) -> None:
        """Rows of channels, again for each lane."""
        row, lanes = hbm.shape[1], held // channels
        self.b.fresh(tile)
        source = hbm.box(*several([(0, lanes)]), (row, channels), (1, row), at=c0 * row)
        self.b.load(tile.rows(held, row), source)

    def _bring(self, tile: Buffer, hbm: Buffer, many: int, q: int, at: _At) -> None:
        """What strips need of the other side."""
        deep, high = at.deep, at.high
        self.b.fresh(tile)
        rows = at.low, high.span, high.step
        columns = at.wide.low, at.wide.span
        source = self.place(hbm, self.there, many, at, q, (deep.low, deep.span), rows, columns)
        to = self.shaped(tile, at.partitions, deep.span, high.span * at.wide.span)
        self.b.load(to, source)

    def _made(self, hbm: Buffer, many: int, q: int, at: _At) -> Access:
        """The strips' own positions."""
        rows = (at.first, at.high.count, at.high.count)
        columns = at.wide.first, at.wide.count
        return self.place(hbm, self.own, many, at, q, (at.deep.first, 1), rows, columns)

    def _put(self, tile: Buffer, hbm: Buffer, many: int, q: int, at: _At) -> None:
        to = self._made(hbm, many, q, at)
        self.b.store(to, self.shaped(tile, at.partitions, 1, at.elements))

    def _add_taps(
        self, total: Buffer, data: Buffer, weights: Buffer, size: int, q: int, at: _At, *,
        forward: bool,
    ) -> None:  # fmt: skip
        """The products of filter q's taps with a strip."""
        for taps in taps_of(at.deep, at.high, at.wide):
            to, read = self.views(taps, total, data, at, forward=forward)
            weight = self.column(weights, size, q * self.spec.taps + self.number(taps))
            ops = {"op0": "multiply", "op1": "add"}
            self.b.emit("scalar_tensor_tensor", to, read, weight, to, **ops)  # type: ignore[arg-type]
