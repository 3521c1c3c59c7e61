"""The gradient of a convolution for its weights as matmuls, one per tap, from what lies in SBUF.

Pixels are contracted: both are transposed on the Tensor engine, four blocks a PSUM bank.
`Convolution` describes the forward pass; few channels have a program of their own.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil

from ...chip import Chip
from ...isa import Affine, Builder, Program, itemsize
from ..limits import BANK, WEIGHT_BYTES, P
from ..matmul.blocking import HAND, Schedule
from ..planes import several
from ..windows import Strip, inside_together
from .few_channels import shares_partitions, weight_of_few_channels
from .shape import Convolution, Work, all_work
from .weight_sums import WeightSums, tiles_of

__all__ = ["conv_weight"]

TRANSPOSED = 72  # blocks of an operand, pixels by taps, that are transposed together
PIXEL_TILES = 8  # of 128 pixels that are transposed before they are multiplied


def conv_weight(
    spec: Convolution, *, chip: Chip, schedule: Schedule = HAND, cores: int = 1
) -> Program:
    """dw[g, f, c, taps] = the sum over b and the pixels of g[b, g, f, :] * x[b, g, c, shifted]."""
    name = f"conv_weight {spec.batch}x{spec.filters} {spec.channels}"
    b = Builder(name, cores=cores, model_flops=spec.flops)
    if shares_partitions(spec):
        return weight_of_few_channels(spec, b, schedule)
    return _Weight(b, spec, schedule).build()


class _Weight(WeightSums):
    def __init__(self, b: Builder, spec: Convolution, schedule: Schedule) -> None:
        super().__init__(b, spec, schedule)
        f, c, size, (_, rows, width) = (
            spec.filters,
            spec.channels,
            itemsize(spec.compute),
            spec.outs,
        )
        together = max(1, min(PIXEL_TILES, TRANSPOSED // spec.taps))
        self.strip = min(rows, self.rows * together)
        tiles = ceil(self.strip / self.rows) * ceil(width / self.columns)
        axis = spec.axes[1]
        self.deep = [one for s in spec.axes[0].forward(1) for one in s.unrolled()]
        self.high = inside_together(axis.forward(self.strip), axis.kernel)
        depths = max(s.span for s in self.deep)
        held = self._held(self.strip) * self.pitch * depths * self.images
        # Blocks of filters and channels whose sums fit.
        each = max(1, int(WEIGHT_BYTES / (4 * P * spec.taps)))
        self.f_tiles = min(ceil(f / P), 4, each)
        self.c_tiles = max(
            1, min(ceil(c / P), each // self.f_tiles, int(48 * 1024 / (2 * held * size)))
        )
        wide_c = min(c, P)
        self.sums = b.sbuf("sums", wide_c * spec.taps, "float32", parts=self.f_tiles * self.c_tiles)
        self.g_rows = b.sbuf("g rows", self.images * self.strip * width, spec.compute, slots=2,
                             parts=self.f_tiles)  # fmt: skip
        self.x_rows = b.sbuf("x rows", held, spec.compute, slots=2, parts=self.c_tiles)
        self.g_transposed = b.sbuf("g transposed", tiles * self.f_tiles * P, spec.compute, slots=2)
        self.x_transposed = b.sbuf(
            "x transposed", tiles * spec.taps * wide_c, spec.compute, slots=2
        )
        self.transposed = b.psum("transposed", 4 * P, spec.compute, slots=2)
        self.psum = b.psum("product", BANK, slots=2)
        self.stored = b.sbuf("stored", wide_c * spec.taps, spec.dtype, slots=2)

    def _held(self, outputs: int) -> int:
        """Rows of the input, padding included, that so many output rows need."""
        axis = self.spec.axes[1]
        return (outputs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1

    def build(self) -> Program:
        b, spec = self.b, self.spec
        with b.loop(spec.groups) as group:
            for f0, fs in b.tiles(spec.filters, self.f_tiles * P):
                for c0, cs in b.tiles(spec.channels, self.c_tiles * P):
                    self._block(group, f0, fs, c0, cs)
        return b.build()

    def _block(self, group: Affine, f0: Affine, fs: int, c0: Affine, cs: int) -> None:
        b, spec = self.b, self.spec
        f_tiles, c_tiles = tiles_of(fs), tiles_of(cs)
        filters = group * spec.filters + f0
        for part in range(self.f_tiles * len(c_tiles)):
            whole = self.sums.rows(P, self.sums.row_elements, part=part)
            b.emit("memset", whole, value=0.0)
        for work in all_work(b, spec.batch, group, self.images, (self.deep, self.high), 1):
            self.load_g(filters, f_tiles, work)
            self._load_x(c0, c_tiles, work)
            pixels = list(self._pixels(work.images, work.high.count))
            self._turn_g(f_tiles, pixels, work.high)
            for c, size in enumerate(c_tiles):
                self._turn_x(c, size, pixels, work.deep, work.high)
                self._multiply(f_tiles, c, size, len(c_tiles), pixels, work.deep)
        for f, rows in enumerate(f_tiles):
            for c, size in enumerate(c_tiles):
                part = f * len(c_tiles) + c
                self.store(filters + f * P, rows, c0 + c * P, size, part)

    def _load_x(self, c0: Affine, c_tiles: list[int], work: Work) -> None:
        """The rows that the strip's outputs reach, with zeros around the borders."""
        spec, b, pad, (group, n0, images, deep, high, j, _) = self.spec, self.b, self.pad, work
        axis, width, pitch = spec.axes[1], spec.sizes[2], self.pitch
        held, low = self._held(high.count), axis.source(high.first, 0)
        skip = max(0, -low)
        rows = min(held, axis.size - low) - skip
        b.fresh(self.x_rows)
        plane = held * pitch
        here = several([(deep.span * plane, images), (plane, deep.span)])
        lines = (*several([(pitch, rows)]), (1, width)) if pad else ((1, rows * width),)
        for c, size in enumerate(c_tiles):
            if pad or rows < held:
                whole = self.x_rows.rows(size, images * deep.span * plane, part=c)
                b.emit("memset", whole, value=0.0)
            if rows <= 0:
                continue
            channel = n0 * self.x.channels + group * spec.channels + c0 + c * P
            there = (j * (high.count * axis.stride) + (low + skip), rows)
            planes = (deep.low, deep.span)
            source = self.x.rows(channel, size, images, planes, there, apart=pad > 0)
            at = skip * pitch + pad
            b.load(self.x_rows.lanes(size, *here, *lines, at=at, part=c), source)

    def _pixels(self, images: int, rows: int) -> Iterator[tuple[int, int, int, int, int]]:
        """(images, first row, rows, first column, columns) of tiles of at most 128 pixels."""
        width = self.spec.outs[2]
        for y in range(0, rows, self.rows):
            for x in range(0, width, self.columns):
                yield images, y, min(self.rows, rows - y), x, min(self.columns, width - x)

    def _turn_g(self, f_tiles: list[int], pixels: Sequence[tuple[int, ...]], high: Strip) -> None:
        b, width = self.b, self.spec.outs[2]
        b.fresh(self.g_transposed)
        for t, (images, y, rows, x, columns_) in enumerate(pixels):
            b.fresh(self.transposed)
            count = images * rows * columns_
            for f, size in enumerate(f_tiles):
                inner = (*several([(high.count * width, images), (width, rows)]), (1, columns_))
                view = self.g_rows.lanes(size, *inner, at=y * width + x, part=f)
                b.emit("nc_transpose", self.transposed.rows(count, size, f * P), view)
            wide = (len(f_tiles) - 1) * P + f_tiles[-1]
            to = self.g_transposed.rows(count, wide, t * self.f_tiles * P)
            b.emit("tensor_copy", to, self.transposed.rows(count, wide))

    def _taps(self, deep: Strip) -> list[tuple[int, int]]:
        """(number of the first tap, where its depth is held) for every plane of the filter."""
        _, height, width = self.spec.kernel
        return [(d.k * height * width, d.there) for d in deep.taps]

    def _turn_x(
        self, c: int, size: int, pixels: Sequence[tuple[int, ...]], deep: Strip, high: Strip
    ) -> None:
        """[c, pixels] of every tap to [pixels, tap, c]."""
        b, spec = self.b, self.spec
        _, height, width = spec.axes
        b.fresh(self.x_transposed)
        plane, per = self._held(high.count) * self.pitch, spec.kernel[1] * spec.kernel[2]
        for t, (count, y, rows, x, columns_) in enumerate(pixels):
            for base, there in self._taps(deep):
                for first in range(0, per, 4):
                    taps = range(first, min(per, first + 4))
                    b.fresh(self.transposed)
                    for slot, tap in enumerate(taps):
                        i, k = divmod(tap, spec.kernel[2])
                        row = there * plane + (y * height.stride + i * height.dilation) * self.pitch
                        at = row + x * width.stride + k * width.dilation
                        inner = [(deep.span * plane, count), (height.stride * self.pitch, rows)]
                        inner = [*several(inner), (width.stride, columns_)]
                        view = self.x_rows.lanes(size, *inner, at=at, part=c)
                        into = self.transposed.rows(count * rows * columns_, size, slot * size)
                        b.emit("nc_transpose", into, view)
                    many = len(taps) * size
                    to = (t * spec.taps + base + first) * size
                    pixels_ = count * rows * columns_
                    b.emit("tensor_copy", self.x_transposed.rows(pixels_, many, to),
                           self.transposed.rows(pixels_, many))  # fmt: skip

    def _multiply(
        self, f_tiles: list[int], c: int, size: int, c_count: int,
        pixels: Sequence[tuple[int, ...]], deep: Strip,
    ) -> None:  # fmt: skip
        b, spec = self.b, self.spec
        per, together = spec.kernel[1] * spec.kernel[2], max(1, BANK // size)
        for (f, rows), (base, _) in product(enumerate(f_tiles), self._taps(deep)):
            for first in range(0, per, together):
                taps = min(together, per - first)
                b.fresh(self.psum)
                into = self.psum.rows(rows, taps * size)
                for t, (images, _, lines, _, columns_) in enumerate(pixels):
                    count = images * lines * columns_
                    at = (t * self.f_tiles + f) * P
                    moving = (t * spec.taps + base + first) * size
                    b.emit(
                        "nc_matmul",
                        into,
                        self.g_transposed.rows(count, rows, at),
                        self.x_transposed.rows(count, taps * size, moving),
                        load=self.schedule.load,
                    )
                sums, part = ((1, taps), (spec.taps, size)), f * c_count + c
                total = self.sums.lanes(rows, *sums, at=base + first, part=part)
                b.emit("tensor_tensor", total, total, into, op="add")
