"""The gradient of a convolution for its input, and transposed convolution, as matmuls per tap.

Filters are contracted: the weights are stationary as they lie in memory, and each tap adds to its
own strided positions of a PSUM tile. `Convolution` describes the forward pass.
"""

from math import ceil

from ...chip import Chip
from ...isa import Affine, Builder, Program, Role, itemsize
from ..limits import BANK, WEIGHT_BYTES, P
from ..matmul.blocking import HAND, Schedule
from ..planes import several
from ..windows import Strip, check_products, taps_of
from .shape import Convolution, Volume, Work, all_work, evacuate

__all__ = ["conv_input"]


def conv_input(
    spec: Convolution, *, chip: Chip, schedule: Schedule = HAND, cores: int = 1
) -> Program:
    """dx[b, g, c, :] = the sum over f and the taps of g[b, g, f, :] * weight[g, f, c, taps]."""
    name = f"conv_input {spec.batch}x{spec.filters} {spec.channels}"
    return _Input(Builder(name, cores=cores, model_flops=spec.flops), spec, chip, schedule).build()


class _Input:
    def __init__(self, b: Builder, spec: Convolution, chip: Chip, schedule: Schedule) -> None:
        self.b, self.spec, self.schedule = b, spec, schedule
        f, c = spec.filters, spec.channels
        g = b.hbm("g", (spec.batch, spec.groups * f, *spec.outs), spec.dtype, Role.INPUT)
        self.weight = b.hbm("weight", (spec.groups * f, c, spec.taps), spec.dtype, Role.WEIGHT)
        dx = b.hbm("dx", (spec.batch, spec.groups * c, *spec.sizes), spec.dtype, Role.OUTPUT)
        self.source = Volume(g, spec.groups * f, spec.outs)
        self.out = Volume(dx, spec.groups * c, spec.sizes)
        self.parts = ceil(f / P)
        _, high, wide = spec.axes
        columns = min(wide.size, BANK // wide.stride * wide.stride)
        rows = max(1, min(high.size, BANK // columns))
        rows = rows if rows == high.size else max(1, rows // high.stride) * high.stride
        rows = min(rows, BANK // columns) if rows * columns > BANK else rows
        self.deep = [one for s in spec.axes[0].backward(1) for one in s.unrolled()]
        self.high, self.wide = high.backward(rows), wide.backward(columns)
        self.wide = [one for s in self.wide for one in s.unrolled()]
        check_products((self.deep, self.high, self.wide), self.parts)
        whole = spec.sizes[0] == 1 and rows == high.size and columns == wide.size
        self.images = max(1, min(spec.batch, BANK // (rows * columns))) if whole else 1
        depths, budget = max(s.span for s in self.deep), chip.sbuf.usable_bytes_per_partition / 8
        row = spec.outs[2] * itemsize(spec.compute) * self.parts * depths
        self.together = max(1, int(budget / (row * max(s.span for s in self.high))))
        spans = [(min(s.repeat, self.together) - 1) * s.step + s.span for s in self.high]
        held = self.images * depths * max(spans) * spec.outs[2]
        fits = int(WEIGHT_BYTES / (spec.taps * self.parts * itemsize(spec.compute)))
        self.block = c if fits >= c else max(P, fits // P * P)
        self.filter = b.sbuf(
            "filter", min(self.block, c) * spec.taps, spec.compute, parts=self.parts
        )
        self.data = b.sbuf("data", held, spec.compute, slots=2, parts=self.parts)
        self.psum = b.psum("accumulator", BANK, slots=schedule.psum_slots)
        self.result = b.sbuf("result", BANK, spec.dtype, slots=4)
        if spec.bias:
            self.bias = b.hbm("bias", (spec.groups * c,), spec.bias, Role.INPUT)
            self.added = b.sbuf("bias of channels", 1, spec.bias, slots=2)

    def build(self) -> Program:
        b, spec = self.b, self.spec
        with b.loop(spec.groups) as group:
            for c0, cs in b.tiles(spec.channels, self.block):
                self._load_weights(group, c0, cs)
                strips = (self.deep, self.high)
                for work in all_work(b, spec.batch, group, self.images, strips, self.together):
                    self._load(work)
                    with b.loop(work.tiles) as j:
                        for wide in self.wide:
                            for at, size in b.tiles(cs, P):
                                channel = group * spec.channels + c0 + at
                                self._tile(work, wide, j, channel, at, size)
        return b.build()

    def _load_weights(self, group: Affine, c0: Affine, cs: int) -> None:
        spec, b = self.spec, self.b
        b.fresh(self.filter)
        row = spec.channels * spec.taps
        for part, f0, fs in b.parts(spec.filters, P):
            at, count = (group * spec.filters + f0) * row + c0 * spec.taps, cs * spec.taps
            source = self.weight.box((row, fs), (1, count), at=at)
            b.load(self.filter.rows(fs, count, part=part), source)

    def _load(self, work: Work) -> None:
        spec, b, (group, n0, images, deep, high, start, tiles) = self.spec, self.b, work
        rows = (tiles - 1) * high.step + high.span
        area, planes = rows * spec.outs[2], (deep.low, deep.span)
        b.fresh(self.data)
        for part, f0, fs in b.parts(spec.filters, P):
            channel = n0 * self.source.channels + group * spec.filters + f0
            low = start * high.step + high.low
            source = self.source.rows(channel, fs, images, planes, (low, rows))
            inner = several([(deep.span * area, images), (area, deep.span)])
            b.load(self.data.lanes(fs, *inner, (1, area), part=part), source)

    def _tile(
        self, work: Work, wide: Strip, j: Affine, channel: Affine, at: Affine, size: int
    ) -> None:
        b, spec, images, deep, high = self.b, self.spec, work.images, work.deep, work.high
        held = (work.tiles - 1) * high.step + high.span
        b.fresh(self.psum, self.result)
        whole = high.count * wide.count
        steps = spec.axes[1].stride, spec.axes[2].stride
        products = sorted(taps_of(deep, high, wide), key=lambda t: -t[1].count * t[2].count)
        full = products and steps == (1, 1)
        full = full and products[0][1].count * products[0][2].count == whole
        if not full:
            b.emit("memset", self.psum.rows(size, images * whole), value=0.0)
        out_width, (_, height, width) = spec.outs[2], spec.kernel
        for d, h, w in products:
            tap = (d.k * height + h.k) * width + w.k
            spots = several([(whole, images), (steps[0] * wide.count, h.count)])
            own = h.own * wide.count + w.own
            into = self.psum.lanes(size, *spots, (steps[1], w.count), at=own)
            view = several([(deep.span * held * out_width, images), (out_width, h.count)])
            row = (d.there * held + h.there) * out_width + wide.low + w.there
            there = j * (high.step * out_width) + row
            for part, _, fs in b.parts(spec.filters, P):
                weights, first = (spec.taps, size), at * spec.taps + tap
                stationary = self.filter.lanes(fs, weights, at=first, part=part)
                moving = self.data.lanes(fs, *view, (1, w.count), at=there, part=part)
                b.emit("nc_matmul", into, stationary, moving, load=self.schedule.load)
        count = images * whole
        bias = None
        if spec.bias:
            b.fresh(self.added)
            bias = self.added.rows(size, 1)
            b.load(bias, self.bias.box((1, size), (1, 1), at=channel))
        evacuate(b, self.result.rows(size, count), self.psum.rows(size, count), bias)
        work.put(b, self.result, self.out, channel, size, wide, j)
