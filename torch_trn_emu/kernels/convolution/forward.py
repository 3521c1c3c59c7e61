"""Convolution as an implicit matmul over channels, one per tap of the filter.

Channels lie on partitions. A tap's product takes the input it needs straight from SBUF, shifted and
strided, so no patches are built; a tap that reaches beyond the border is cut to what lies inside,
so nothing is padded. All taps and input channels accumulate in one PSUM tile. Rows of the filter
that share the array each get their rows of the input shifted.
"""

from collections.abc import Iterator
from itertools import product

from ...chip import Chip
from ...isa import Affine, Builder, Program, Role, itemsize
from ..limits import BANK, P
from ..matmul.blocking import HAND, Schedule
from ..planes import several
from ..windows import Strip, Tap, inside_together
from .filters import Filter
from .shape import Convolution, Part, Volume, Work, all_work, evacuate, parts_of

__all__ = ["conv"]


def conv(spec: Convolution, *, chip: Chip, schedule: Schedule = HAND, cores: int = 1) -> Program:
    """out[b, g, f, :] = the sum over c and the taps of in[b, g, c, :] * weight[g, f, c, taps]."""
    size = "x".join(map(str, spec.sizes))
    name = f"conv {spec.batch}x{spec.channels}x{size} {spec.filters}"
    return _Conv(Builder(name, cores=cores, model_flops=spec.flops), spec, chip, schedule).build()


class _Conv:
    def __init__(self, b: Builder, spec: Convolution, chip: Chip, schedule: Schedule) -> None:
        self.b, self.spec, self.chip, self.schedule = b, spec, chip, schedule
        c, f, width, out_width = spec.channels, spec.filters, spec.sizes[2], spec.outs[2]
        skipped = int(spec.sizes[0] == spec.outs[0] == 1)  # no depth
        size, out = list(spec.sizes)[skipped:], list(spec.outs)[skipped:]
        source = b.hbm("in", (spec.batch, spec.groups * c, *size), spec.dtype, Role.INPUT)
        result = b.hbm("out", (spec.batch, spec.groups * f, *out), spec.dtype, Role.OUTPUT)
        self.source = Volume(source, spec.groups * c, spec.sizes)
        self.out = Volume(result, spec.groups * f, spec.outs)
        self.parts = parts_of(spec)
        # A PSUM tile: several images if they are small, else rows of one; of wide ones a piece.
        self.wide = spec.axes[2].forward(min(out_width, BANK))
        across = self.wide[0].count
        self.per_tile = max(1, min(spec.outs[1], BANK // across))
        whole = self.per_tile == spec.outs[1] and len(self.wide) == 1 and spec.outs[0] == 1
        self.images = max(1, min(spec.batch, BANK // (spec.outs[1] * across))) if whole else 1
        self.strips = spec.axes[1].forward(self.per_tile)
        if self.parts[0].rows:
            self.strips = inside_together(self.strips, spec.kernel[1])
        self.deep = [one for s in spec.axes[0].forward(1) for one in s.unrolled()]
        self.together = self._together(chip)
        spans = [self._span(s, min(s.repeat, self.together)) for s in self.strips]
        depths = max(s.span for s in self.deep)
        self.held = self.images * depths * max(spans) * width
        self.filter = Filter(b, spec, self.parts)
        self.data = b.sbuf("data", self.held, spec.compute, slots=2, parts=len(self.parts))
        self.psum = b.psum("accumulator", BANK, slots=schedule.psum_slots)
        self.result = b.sbuf("result", BANK, spec.dtype, slots=4)

    # --- how the work is cut ---

    def _together(self, chip: Chip) -> int:
        """PSUM tiles of rows whose input is loaded at once: a quarter of SBUF."""
        budget = chip.sbuf.usable_bytes_per_partition / 8
        depths = max(s.span for s in self.deep)
        row = self.spec.sizes[2] * itemsize(self.spec.compute) * len(self.parts) * depths
        return max(1, int(budget / (row * self.per_tile * self.spec.axes[1].stride)))

    def _span(self, s: Strip, tiles: int) -> int:
        """Rows of the input that `tiles` tiles like strip s need."""
        if self.parts[0].rows:  # shifted copies, without the filter's reach
            axis = self.spec.axes[1]
            return (tiles * s.count - 1) * axis.stride + 1
        return (tiles - 1) * s.step + s.span

    # --- data ---

    def _load(self, work: Work) -> None:
        self.b.fresh(self.data)
        rows, high = self._span(work.high, work.tiles), work.high
        for k, part in enumerate(self.parts):
            if part.rows:
                self._load_shifted(k, part, work, rows)
            else:
                self._rows(k, part, 0, work, (work.start * high.step + high.low, rows), 0, rows)

    def _load_shifted(self, k: int, part: Part, work: Work, rows: int) -> None:
        """For each row of the filter the input rows it meets, zeros where there are none."""
        axis, high = self.spec.axes[1], work.high
        lows = [axis.source(high.first, part.first + q) for q in range(part.rows)]
        last = high.repeat * high.count * axis.stride
        if lows[0] < 0 or lows[-1] + last > axis.size:
            width = work.images * rows * self.spec.sizes[2]
            self.b.emit("memset", self.data.rows(part.partitions, width, part=k), value=0.0)
        for q, low in enumerate(lows):
            skip = max(0, -low)
            count = min(rows, axis.size - low) - skip
            if count > 0:
                at = work.start * (high.count * axis.stride) + (low + skip)
                self._rows(k, part, q, work, (at, count), skip, rows)

    def _rows(
        self, k: int, part: Part, q: int, work: Work, rows: tuple[Affine, int], skip: int,
        held: int,
    ) -> None:  # fmt: skip
        """Rows (first, how many) to row `skip` of tiles of `held` rows, on block q's partitions."""
        deep, area = work.deep, held * self.spec.sizes[2]
        channel = work.n0 * self.source.channels + work.group * self.spec.channels + part.c0
        planes = (deep.low, deep.span)
        source = self.source.rows(channel, part.channels, work.images, planes, rows)
        here = several([(deep.span * area, work.images), (area, deep.span)])
        run = (1, rows[1] * self.spec.sizes[2])
        at = q * part.channels * self.data.row_elements + skip * self.spec.sizes[2]
        self.b.load(self.data.lanes(part.channels, *here, run, at=at, part=k), source)

    # --- products ---

    def build(self) -> Program:
        b, spec = self.b, self.spec
        with b.loop(spec.groups) as group:
            for f0, fs in b.tiles(spec.filters, self.filter.block):
                self.filter.load(group, f0, fs)
                strips = (self.deep, self.strips)
                for work in all_work(b, spec.batch, group, self.images, strips, self.together):
                    self._load(work)
                    self._tiles(f0, fs, work)
        return b.build()

    def _tiles(self, f0: Affine, fs: int, work: Work) -> None:
        b, spec = self.b, self.spec
        with b.loop(work.tiles) as j:
            for wide in self.wide:
                for k, f, size in b.parts(fs, P):
                    b.fresh(self.psum, self.result)
                    self._accumulate(f, size, fs, work, wide, j)
                    count = work.images * work.high.count * wide.count
                    to, sums = (t.rows(size, count) for t in (self.result, self.psum))
                    bias = self.filter.added.rows(size, 1, k) if spec.bias else None
                    evacuate(b, to, sums, bias)
                    channel = work.group * spec.filters + f0 + f
                    work.put(b, self.result, self.out, channel, size, wide, j)

    def _accumulate(
        self, f: Affine, size: int, fs: int, work: Work, wide: Strip, j: Affine
    ) -> None:
        b, images, deep, high = self.b, work.images, work.deep, work.high
        held = self._span(high, work.tiles)
        products = list(self._products(deep, high, wide))
        # The first product writes the tile, the others add to parts of it.
        products.sort(key=lambda t: -t[3].count * t[4].count)
        whole = high.count * wide.count
        if not products or products[0][3].count * products[0][4].count < whole:
            b.emit("memset", self.psum.rows(size, images * whole), value=0.0)
        width, axes = self.spec.sizes[2], self.spec.axes
        for k, number, d, h, w in products:
            part = self.parts[k]
            step = high.count * axes[1].stride if part.rows else high.step
            rows = j * (step * width) + ((d.there * held + h.there) * width + wide.low + w.there)
            view = several([(deep.span * held * width, images), (axes[1].stride * width, h.count)])
            view = [*view, (axes[2].stride, w.count)]
            moving = self.data.lanes(part.partitions, *view, at=rows, part=k)
            spots = several([(whole, images), (wide.count, h.count)])
            at = h.own * wide.count + w.own
            into = self.psum.lanes(size, *spots, (1, w.count), at=at)
            stationary = self.filter.filter.rows(part.partitions, size, f + number * fs, part=k)
            b.emit("nc_matmul", into, stationary, moving, load=self.schedule.load)

    def _products(
        self, deep: Strip, high: Strip, wide: Strip
    ) -> Iterator[tuple[int, int, Tap, Tap, Tap]]:
        """(part of the contraction, number in its weights, taps) of all products of a tile."""
        _, height, width = self.spec.kernel
        for k, part in enumerate(self.parts):
            if part.rows:
                every = Tap(k=0, own=0, there=0, count=high.count)
                yield from ((k, w.k, deep.taps[0], every, w) for w in wide.taps)
                continue
            for d, h, w in product(deep.taps, high.taps, wide.taps):
                yield k, (d.k * height + h.k) * width + w.k, d, h, w
