"""The gradient of a convolution for its weights as matmuls, one per tap, from what lies in SBUF.

Pixels are contracted: both are transposed on the Tensor engine, four blocks a PSUM bank.
`Convolution` describes the forward pass; few channels have a program of their own.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, prod

from ...chip import Chip
from ...isa import Access, Affine, Builder, Program, Role, itemsize
from ..limits import BANK, WEIGHT_BYTES, P
from ..matmul.blocking import HAND, Schedule
from ..planes import columns, several
from ..windows import Strip, inside_together
from .few_channels import shares_partitions, weight_of_few_channels
from .shape import Convolution

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


class _Weight:
    def __init__(self, b: Builder, spec: Convolution, schedule: Schedule) -> None:
        self.b, self.spec, self.schedule = b, spec, schedule
        f, c = spec.filters, spec.channels
        self.g = b.hbm("g", (spec.batch, spec.groups * f, *spec.outs), spec.dtype, Role.INPUT)
        self.x = b.hbm("x", (spec.batch, spec.groups * c, *spec.sizes), spec.dtype, Role.INPUT)
        self.dw = b.hbm("dw", (spec.groups * f, c, spec.taps), spec.dtype, Role.OUTPUT)
        # Pixels of a tile: images, rows and columns that make at most 128.
        _, rows, width = spec.outs
        self.columns = min(width, P)
        self.rows = max(1, min(rows, P // self.columns))
        self.images = max(1, min(spec.batch, P // (rows * width))) if spec.outs[0] == 1 else 1
        together = max(1, min(PIXEL_TILES, TRANSPOSED // spec.taps))
        self.strip = min(rows, self.rows * together)
        tiles = ceil(self.strip / self.rows) * ceil(width / self.columns)
        size, (_, _, pad) = itemsize(spec.compute), (a.padding for a in spec.axes)
        self.pitch = spec.sizes[2] + 2 * pad
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
        f_tiles, c_tiles = _tiles(fs), _tiles(cs)
        for part in range(self.f_tiles * len(c_tiles)):
            row = self.sums.row_elements
            whole = Access(buffer=self.sums, pattern=((row, P), (1, row)), part=Affine(part))
            b.emit("memset", whole, value=0.0)
        for n0, images in b.tiles(spec.batch, self.images):
            for deep, high in product(self.deep, self.high):
                with b.loop(high.repeat) as j:
                    self._load_g(group, f0, f_tiles, n0, images, deep, high, j)
                    self._load_x(group, c0, c_tiles, n0, images, deep, high, j)
                    pixels = list(self._pixels(images, high.count))
                    self._turn_g(f_tiles, pixels, high)
                    for c, size in enumerate(c_tiles):
                        self._turn_x(c, size, pixels, deep, high)
                        self._multiply(f_tiles, c, size, len(c_tiles), pixels, deep)
        for f, rows in enumerate(f_tiles):
            for c, size in enumerate(c_tiles):
                self._store(group, f0 + f * P, rows, c0 + c * P, size, f * len(c_tiles) + c)

    def _load_g(
        self, group: Affine, f0: Affine, f_tiles: list[int], n0: Affine, images: int, deep: Strip,
        high: Strip, j: Affine,
    ) -> None:  # fmt: skip
        spec, b = self.spec, self.b
        _, height, width = spec.outs
        volume, filters = prod(spec.outs), spec.groups * spec.filters
        b.fresh(self.g_rows)
        y = j * high.count + high.first
        for f, rows in enumerate(f_tiles):
            at = (n0 * filters + group * spec.filters + f0 + f * P) * volume
            source = Access(
                buffer=self.g,
                offset=at + deep.first * height * width + y * width,
                pattern=((volume, rows), *several([(filters * volume, images)]),
                         (1, high.count * width)),
            )  # fmt: skip
            inner = (*several([(high.count * width, images)]), (1, high.count * width))
            pattern = ((self.g_rows.row_elements, rows), *inner)
            b.load(Access(buffer=self.g_rows, pattern=pattern, part=Affine(f)), source)

    def _load_x(
        self, group: Affine, c0: Affine, c_tiles: list[int], n0: Affine, images: int, deep: Strip,
        high: Strip, j: Affine,
    ) -> None:  # fmt: skip
        """The rows that the strip's outputs reach, with zeros around the borders."""
        spec, b = self.spec, self.b
        axis, pad = spec.axes[1], spec.axes[2].padding
        _, height, width = spec.sizes
        volume, channels = prod(spec.sizes), spec.groups * spec.channels
        held, low = self._held(high.count), axis.source(high.first, 0)
        skip = max(0, -low)
        rows = min(held, axis.size - low) - skip
        b.fresh(self.x_rows)
        plane = held * self.pitch
        for c, size in enumerate(c_tiles):
            row = self.x_rows.row_elements
            if pad or rows < held:
                whole = ((row, size), (1, images * deep.span * plane))
                b.emit(
                    "memset", Access(buffer=self.x_rows, pattern=whole, part=Affine(c)), value=0.0
                )
            if rows <= 0:
                continue
            lines = [(width, rows), (1, width)] if pad else [(1, rows * width)]
            outer = [(channels * volume, images), (height * width, deep.span)]
            y = j * (high.count * axis.stride) + (low + skip)
            source = Access(
                buffer=self.x,
                offset=(n0 * channels + group * spec.channels + c0 + c * P) * volume
                + deep.low * height * width
                + y * width,
                pattern=((volume, size), *several(outer), *lines),
            )
            here = [(deep.span * plane, images), (plane, deep.span)]
            lines = [(self.pitch, rows), (1, width)] if pad else [(1, rows * width)]
            to = Access(
                buffer=self.x_rows,
                offset=Affine(skip * self.pitch + pad),
                pattern=((row, size), *several(here), *lines),
                part=Affine(c),
            )
            b.load(to, source)

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
                inner = [(high.count * width, images), (width, rows)]
                view = Access(
                    buffer=self.g_rows,
                    offset=Affine(y * width + x),
                    pattern=((self.g_rows.row_elements, size), *several(inner), (1, columns_)),
                    part=Affine(f),
                )
                b.emit("nc_transpose", columns(self.transposed, count, size, f * P), view)
            wide = (len(f_tiles) - 1) * P + f_tiles[-1]
            to = columns(self.g_transposed, count, wide, t * self.f_tiles * P)
            b.emit("tensor_copy", to, columns(self.transposed, count, wide))

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
                        view = Access(
                            buffer=self.x_rows,
                            offset=Affine(at),
                            pattern=((self.x_rows.row_elements, size), *several(inner),
                                     (width.stride, columns_)),
                            part=Affine(c),
                        )  # fmt: skip
                        into = columns(self.transposed, count * rows * columns_, size, slot * size)
                        b.emit("nc_transpose", into, view)
                    many = len(taps) * size
                    to = (t * spec.taps + base + first) * size
                    pixels_ = count * rows * columns_
                    b.emit("tensor_copy", columns(self.x_transposed, pixels_, many, to),
                           columns(self.transposed, pixels_, many))  # fmt: skip

    def _multiply(
        self, f_tiles: list[int], c: int, size: int, c_count: int,
        pixels: Sequence[tuple[int, ...]], deep: Strip,
    ) -> None:  # fmt: skip
        b, spec = self.b, self.spec
        per, together = spec.kernel[1] * spec.kernel[2], max(1, BANK // size)
        row = self.sums.row_elements
        for (f, rows), (base, _) in product(enumerate(f_tiles), self._taps(deep)):
            for first in range(0, per, together):
                taps = min(together, per - first)
                b.fresh(self.psum)
                into = columns(self.psum, rows, taps * size)
                for t, (images, _, lines, _, columns_) in enumerate(pixels):
                    count = images * lines * columns_
                    at = (t * self.f_tiles + f) * P
                    moving = (t * spec.taps + base + first) * size
                    b.emit(
                        "nc_matmul",
                        into,
                        columns(self.g_transposed, count, rows, at),
                        columns(self.x_transposed, count, taps * size, moving),
                        load=self.schedule.load,
                    )
                total = Access(
                    buffer=self.sums,
                    offset=Affine(base + first),
                    pattern=((row, rows), (1, taps), (spec.taps, size)),
                    part=Affine(f * c_count + c),
                )
                b.emit("tensor_tensor", total, total, into, op="add")

    def _store(self, group: Affine, f: Affine, rows: int, c: Affine, size: int, part: int) -> None:
        b, spec = self.b, self.spec
        b.fresh(self.stored)
        count, row = size * spec.taps, spec.channels * spec.taps
        source = Access(
            buffer=self.sums,
            pattern=((self.sums.row_elements, rows), (1, count)),
            part=Affine(part),
        )
        b.emit("tensor_copy", columns(self.stored, rows, count), source)
        at = (group * spec.filters + f) * row + c * spec.taps
        to = Access(buffer=self.dw, offset=at, pattern=((row, rows), (1, count)))
        b.store(to, columns(self.stored, rows, count))


def _tiles(size: int) -> list[int]:
    return [min(P, size - start) for start in range(0, size, P)]
