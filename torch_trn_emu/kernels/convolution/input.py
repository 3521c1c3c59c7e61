"""The gradient of a convolution for its input, and transposed convolution, as matmuls per tap.

Filters are contracted: the weights are stationary as they lie in memory, and each tap adds to its
own strided positions of a PSUM tile. `Convolution` describes the forward pass.
"""

from itertools import product
from math import ceil, prod

from ...chip import Chip
from ...isa import Access, Affine, Builder, Program, Role, itemsize
from ..limits import BANK, WEIGHT_BYTES, P
from ..matmul.blocking import HAND, Schedule
from ..planes import columns, several
from ..windows import Strip, taps_of
from .shape import Convolution

__all__ = ["conv_input"]


def conv_input(
    how: Convolution, *, chip: Chip, schedule: Schedule = HAND, cores: int = 1
) -> Program:
    """dx[b, g, c, :] = the sum over f and the taps of g[b, g, f, :] * weight[g, f, c, taps]."""
    name = f"conv_input {how.batch}x{how.filters} {how.channels}"
    return _Input(Builder(name, cores=cores, model_flops=how.flops), how, chip, schedule).build()


class _Input:
    def __init__(self, b: Builder, how: Convolution, chip: Chip, schedule: Schedule) -> None:
        self.b, self.how, self.schedule = b, how, schedule
        f, c = how.filters, how.channels
        self.source = b.hbm("g", (how.batch, how.groups * f, *how.outs), how.dtype, Role.INPUT)
        self.weight = b.hbm("weight", (how.groups * f, c, how.taps), how.dtype, Role.WEIGHT)
        self.out = b.hbm("dx", (how.batch, how.groups * c, *how.sizes), how.dtype, Role.OUTPUT)
        self.parts = ceil(f / P)
        _, high, wide = how.axes
        columns = min(wide.size, BANK // wide.stride * wide.stride)
        rows = max(1, min(high.size, BANK // columns))
        rows = rows if rows == high.size else max(1, rows // high.stride) * high.stride
        rows = min(rows, BANK // columns) if rows * columns > BANK else rows
        self.deep = [one for s in how.axes[0].backward(1) for one in s.unrolled()]
        self.high, self.wide = high.backward(rows), wide.backward(columns)
        self.wide = [one for s in self.wide for one in s.unrolled()]
        whole = how.sizes[0] == 1 and rows == high.size and columns == wide.size
        self.images = max(1, min(how.batch, BANK // (rows * columns))) if whole else 1
        depths, budget = max(s.span for s in self.deep), chip.sbuf.usable_bytes_per_partition / 8
        row = how.outs[2] * itemsize(how.compute) * self.parts * depths
        self.together = max(1, int(budget / (row * max(s.span for s in self.high))))
        spans = [(min(s.repeat, self.together) - 1) * s.step + s.span for s in self.high]
        held = self.images * depths * max(spans) * how.outs[2]
        fits = int(WEIGHT_BYTES / (how.taps * self.parts * itemsize(how.compute)))
        self.block = c if fits >= c else max(P, fits // P * P)
        self.filter = b.sbuf("filter", min(self.block, c) * how.taps, how.compute, parts=self.parts)
        self.data = b.sbuf("data", held, how.compute, slots=2, parts=self.parts)
        self.psum = b.psum("accumulator", BANK, slots=schedule.psum_slots)
        self.result = b.sbuf("result", BANK, how.dtype, slots=4)
        if how.bias:
            self.bias = b.hbm("bias", (how.groups * c,), how.bias, Role.INPUT)
            self.added = b.sbuf("bias of channels", 1, how.bias, slots=2)

    def build(self) -> Program:
        b, how = self.b, self.how
        with b.loop(how.groups) as group:
            for c0, cs in b.tiles(how.channels, self.block):
                self._load_weights(group, c0, cs)
                for n0, images in b.tiles(how.batch, self.images):
                    for deep, high in product(self.deep, self.high):
                        for start, tiles in b.tiles(high.repeat, self.together):
                            self._load(group, n0, images, deep, high, start, tiles)
                            with b.loop(tiles) as j:
                                held = (tiles - 1) * high.step + high.span
                                for wide in self.wide:
                                    for at, size in b.tiles(cs, P):
                                        channel = group * how.channels + c0 + at
                                        tile = (n0, images, deep, high, wide)
                                        self._tile(channel, at, size, cs, tile, start, j, held)
        return b.build()

    def _load_weights(self, group: Affine, c0: Affine, cs: int) -> None:
        how, b = self.how, self.b
        b.fresh(self.filter)
        row = how.channels * how.taps
        for part, f0, fs in b.parts(how.filters, P):
            at = (group * how.filters + f0) * row + c0 * how.taps
            pattern = ((row, fs), (1, cs * how.taps))
            to = ((self.filter.row_elements, fs), (1, cs * how.taps))
            b.load(
                Access(buffer=self.filter, pattern=to, part=part),
                Access(buffer=self.weight, offset=at, pattern=pattern),
            )

    def _load(
        self, group: Affine, n0: Affine, images: int, deep: Strip, high: Strip, start: Affine,
        tiles: int,
    ) -> None:  # fmt: skip
        how, b = self.how, self.b
        _, height, width = how.outs
        rows, volume = (tiles - 1) * high.step + high.span, prod(how.outs)
        b.fresh(self.data)
        for part, f0, fs in b.parts(how.filters, P):
            channel = n0 * (how.groups * how.filters) + group * how.filters + f0
            low = start * high.step + high.low
            planes = [(how.groups * how.filters * volume, images), (height * width, deep.span)]
            source = Access(
                buffer=self.source,
                offset=channel * volume + deep.low * height * width + low * width,
                pattern=((volume, fs), *several(planes), (1, rows * width)),
            )
            size = images * deep.span * rows * width
            to = ((self.data.row_elements, fs), (1, size))
            if len(source.pattern) > 2:
                inner = [(deep.span * rows * width, images), (rows * width, deep.span)]
                to = ((self.data.row_elements, fs), *several(inner), (1, rows * width))  # type: ignore[assignment]
            b.load(Access(buffer=self.data, pattern=to, part=part), source)

    def _tile(
        self, channel: Affine, at: Affine, size: int, cs: int,
        tile: tuple[Affine, int, Strip, Strip, Strip], start: Affine, j: Affine, held: int,
    ) -> None:  # fmt: skip
        b, how = self.b, self.how
        _, images, deep, high, wide = tile
        b.fresh(self.psum, self.result)
        whole = high.count * wide.count
        steps = how.axes[1].stride, how.axes[2].stride
        products = sorted(taps_of(deep, high, wide), key=lambda t: -t[1].count * t[2].count)
        full = products and steps == (1, 1)
        full = full and products[0][1].count * products[0][2].count == whole
        if not full:
            b.emit("memset", columns(self.psum, size, images * whole), value=0.0)
        out_width, (_, height, width) = how.outs[2], how.kernel
        for d, h, w in products:
            tap = (d.k * height + h.k) * width + w.k
            spots = [(whole, images), (steps[0] * wide.count, h.count)]
            into = Access(
                buffer=self.psum,
                offset=Affine(h.own * wide.count + w.own),
                pattern=((BANK, size), *several(spots), (steps[1], w.count)),
            )
            view = [(deep.span * held * out_width, images), (out_width, h.count)]
            row = (d.there * held + h.there) * out_width + wide.low + w.there
            for part, _, fs in b.parts(how.filters, P):
                stationary = Access(
                    buffer=self.filter,
                    offset=at * how.taps + tap,
                    pattern=((self.filter.row_elements, fs), (how.taps, size)),
                    part=part,
                )
                moving = Access(
                    buffer=self.data,
                    offset=j * (high.step * out_width) + row,
                    pattern=((self.data.row_elements, fs), *several(view), (1, w.count)),
                    part=part,
                )
                b.emit("nc_matmul", into, stationary, moving, load=self.schedule.load)
        count = images * whole
        done, source = columns(self.result, size, count), columns(self.psum, size, count)
        if how.bias:
            b.fresh(self.added)
            bias = columns(self.added, size)
            b.load(bias, Access(buffer=self.bias, offset=channel, pattern=((1, size), (1, 1))))
            b.emit("tensor_scalar", done, source, bias, op0="add")
        else:
            b.emit("tensor_copy", done, source)
        self._store(channel, size, tile, start, j)

    def _store(
        self, channel: Affine, size: int, tile: tuple[Affine, int, Strip, Strip, Strip],
        start: Affine, j: Affine,
    ) -> None:  # fmt: skip
        how = self.how
        n0, images, deep, high, wide = tile
        volume, (_, height, width) = prod(how.sizes), how.sizes
        y = (start + j) * high.count + high.first
        at = (n0 * (how.groups * how.channels) + channel) * volume
        whole = wide.count == width
        lines = [(1, high.count * width)] if whole else [(width, high.count), (1, wide.count)]
        inner = [(1, high.count * width)] if whole else [(wide.count, high.count), (1, wide.count)]
        to = Access(
            buffer=self.out,
            offset=at + deep.first * height * width + y * width + wide.first,
            pattern=((volume, size), *several([(how.groups * how.channels * volume, images)]),
                     *lines),
        )  # fmt: skip
        here = several([(high.count * wide.count, images)])
        row = self.result.row_elements
        self.b.store(to, Access(buffer=self.result, pattern=((row, size), *here, *inner)))
