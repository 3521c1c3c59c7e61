"""Depthwise convolution on the Vector engine: one input channel a group uses one row of the array.

Channels lie on partitions and each tap is one multiply and add over a strided view (chosen: with
all 128 lanes at work this takes less time than a matmul of one row a channel). `Convolution`
describes the forward pass; `filters` is how many of them a channel has.
"""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

from ...chip import Chip
from ...isa import Access, Affine, Buffer, Builder, Program, Role
from ..limits import TILE_BYTES, P
from ..windows import Strip, Tap, taps_of
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
    """One strip: image and channels, the first rows needed and made, and elements of a channel."""

    channel: Affine
    deep: Strip
    high: Strip
    low: Affine
    first: Affine
    elements: int


class _Depthwise:
    def __init__(
        self, name: str, spec: Convolution, chip: Chip, cores: int, *, forward: bool
    ) -> None:
        self.spec = spec
        self.b = Builder(f"{name} {spec.groups}", cores=cores, model_flops=spec.flops)
        depth, height, width = spec.axes
        self.own, self.there = (spec.outs, spec.sizes) if forward else (spec.sizes, spec.outs)
        deep = depth.forward(1) if forward else depth.backward(1)
        self.deep = [one for s in deep for one in s.unrolled()]
        span = max(s.span for s in self.deep)
        row = 4 * (self.own[2] + span * self.there[2] * (height.stride if forward else 1))
        rows = max(1, min(self.own[1], int(TILE_BYTES / row)))
        if not forward:
            rows = max(1, rows // height.stride) * height.stride
        rows = min(rows, self.own[1])
        self.high = height.forward(rows) if forward else height.backward(rows)
        (self.wide,) = width.forward(width.out) if forward else width.backward(width.size)
        self.need = span * max(s.span for s in self.high) * self.there[2]
        self.made = max(s.count for s in self.high) * self.own[2]

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
        self, hbm: Buffer, shape: tuple[int, ...], many: int, channel: Affine, size: int, q: int,
        depth: tuple[int, int], rows: tuple[Affine, int],
    ) -> Access:  # fmt: skip
        """Rows of filter q of channels `channel` ..; `channel` counts images too."""
        volume, (_, height, width) = prod(shape), shape
        at = (channel * many + q) * volume + depth[0] * height * width + rows[0] * width
        planes, run = (height * width, depth[1]), (1, rows[1] * width)
        return hbm.box((many * volume, size), planes, run, at=at)

    def shaped(self, tile: Buffer, size: int, depth: int, elements: int) -> Access:
        return tile.lanes(size, (elements, depth), (1, elements))

    def views(
        self, taps: tuple[Tap, ...], own: Buffer, there: Buffer, size: int, held: int, *,
        forward: bool,
    ) -> tuple[Access, Access]:  # fmt: skip
        """The tap's positions of its own and of the other side."""
        d, h, w = taps
        steps = self.spec.axes[1].stride, self.spec.axes[2].stride
        wide, other = self.own[2], self.there[2]
        apart, tight = (steps[0], steps[1]), (1, 1)
        mine, its = (tight, apart) if forward else (apart, tight)
        at = (d.there * held + h.there) * other + self.wide.low + w.there
        a = (mine[0] * wide, h.count), (mine[1], w.count)
        c = (its[0] * other, h.count), (its[1], w.count)
        here = own.lanes(size, *a, at=h.own * wide + w.own)
        return here, there.lanes(size, *c, at=at)

    def number(self, taps: tuple[Tap, ...]) -> int:
        _, height, width = self.spec.kernel
        return (taps[0].k * height + taps[1].k) * width + taps[2].k

    def column(self, tile: Buffer, size: int, at: int) -> Access:
        return tile.rows(size, 1, at)

    # --- passes ---

    def strips(self, c0: Affine) -> Iterator[_At]:
        """All images and strips of channels `c0` ..; the body of `for` is emitted for each kind."""
        with self.b.loop(self.spec.batch) as n:
            channel = n * self.spec.groups + c0
            for deep, high in product(self.deep, self.high):
                with self.b.loop(high.repeat) as j:
                    low, first = j * high.step + high.low, j * high.count + high.first
                    yield _At(channel, deep, high, low, first, high.count * self.own[2])

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
        for c0, size in b.tiles(spec.groups, P):
            self._load_all(held_weight, weight, c0, size)
            if spec.bias:
                self._load_all(added, bias, c0, size)
            for at in self.strips(c0):
                self._bring(data, x, 1, size, 0, at)
                for q in range(many):
                    b.fresh(total, result)
                    start, done = (t.rows(size, at.elements) for t in (total, result))
                    b.emit("memset", start, value=0.0)
                    self._add_taps(total, data, held_weight, size, q, at, forward=True)
                    evacuate(b, done, start, self.column(added, size, q) if spec.bias else None)
                    self._put(result, out, many, size, q, at)
        return b.build()

    def input(self) -> Program:
        b, spec, many = self.b, self.spec, self.spec.filters
        g = self.hbm("g", spec.outs, many, Role.INPUT)
        weight, held_weight = self.weights()
        dx = self.hbm("dx", spec.sizes, 1, Role.OUTPUT)
        data, total = self.tile("data", self.need, spec.compute), self.tile("sum", self.made)
        result = self.tile("result", self.made, spec.dtype)
        for c0, size in b.tiles(spec.groups, P):
            self._load_all(held_weight, weight, c0, size)
            for at in self.strips(c0):
                b.fresh(total, result)
                whole = total.rows(size, at.elements)
                b.emit("memset", whole, value=0.0)
                for q in range(many):
                    self._bring(data, g, many, size, q, at)
                    self._add_taps(total, data, held_weight, size, q, at, forward=False)
                b.emit("tensor_copy", result.rows(size, at.elements), whole)
                self._put(result, dx, 1, size, 0, at)
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
        result = self.tile("result", count, spec.dtype)
        for c0, size in b.tiles(spec.groups, P):
            b.fresh(sums, result)
            b.emit("memset", sums.rows(size, count), value=0.0)
            for at in self.strips(c0):
                self._bring(data, x, 1, size, 0, at)
                for q in range(many):
                    b.fresh(given)
                    b.load(
                        self.shaped(given, size, 1, at.elements), self._made(g, many, size, q, at)
                    )
                    for taps in taps_of(at.deep, at.high, self.wide):
                        a, c = self.views(taps, given, data, size, at.high.span, forward=True)
                        b.fresh(made, each)
                        _, h, w = taps
                        to = made.rows(size, h.count * w.count)
                        b.emit("tensor_tensor", to, a, c, op="multiply")
                        b.emit("tensor_reduce", each.rows(size, 1), to, op="add")
                        to = self.column(sums, size, q * spec.taps + self.number(taps))
                        b.emit("tensor_tensor", to, to, each.rows(size, 1), op="add")
            b.emit("tensor_copy", result.rows(size, count), sums.rows(size, count))
            b.store(dw.rows(size, count, c0 * count), result.rows(size, count))
        return b.build()

    # --- their parts ---

    def _load_all(self, tile: Buffer, hbm: Buffer, c0: Affine, size: int) -> None:
        row = hbm.shape[1]
        self.b.fresh(tile)
        self.b.load(tile.rows(size, row), hbm.rows(size, row, c0 * row))

    def _bring(self, tile: Buffer, hbm: Buffer, many: int, size: int, q: int, at: _At) -> None:
        """What a strip needs of the other side."""
        deep, high = at.deep, at.high
        self.b.fresh(tile)
        source = self.place(hbm, self.there, many, at.channel, size, q, (deep.low, deep.span),
                            (at.low, high.span))  # fmt: skip
        self.b.load(self.shaped(tile, size, deep.span, high.span * self.there[2]), source)

    def _made(self, hbm: Buffer, many: int, size: int, q: int, at: _At) -> Access:
        """A strip's own positions."""
        rows = (at.first, at.high.count)
        return self.place(hbm, self.own, many, at.channel, size, q, (at.deep.first, 1), rows)

    def _put(self, tile: Buffer, hbm: Buffer, many: int, size: int, q: int, at: _At) -> None:
        to = self._made(hbm, many, size, q, at)
        self.b.store(to, self.shaped(tile, size, 1, at.elements))

    def _add_taps(
        self, total: Buffer, data: Buffer, weights: Buffer, size: int, q: int, at: _At, *,
        forward: bool,
    ) -> None:  # fmt: skip
        """The products of filter q's taps with a strip."""
        for taps in taps_of(at.deep, at.high, self.wide):
            to, read = self.views(taps, total, data, size, at.high.span, forward=forward)
            weight = self.column(weights, size, q * self.spec.taps + self.number(taps))
            ops = {"op0": "multiply", "op1": "add"}
            self.b.emit("scalar_tensor_tensor", to, read, weight, to, **ops)  # type: ignore[arg-type]
