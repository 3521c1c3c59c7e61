"""The gradient for the weights of a convolution with few channels, such as a network's first.

Pixels are contracted, so they have to lie on partitions; the Tensor engine transposes the input.
Channels alone would fill few of the array's rows: rows of the filter share them, each with its rows
of the input shifted, as in the forward pass. A strip of rows is brought once, and the products of
its pixels add up in PSUM.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from ...isa import Access, Affine, Builder, Engine, Program, Role, itemsize
from ..limits import BANK, BANK_BYTES, BANKS, P
from ..matmul.blocking import Schedule
from ..planes import columns, several
from ..windows import Strip, Tap, inside_together
from .shape import Convolution

__all__ = ["shares_partitions", "weight_of_few_channels"]

PRODUCTS = 6  # of PSUM's banks hold products, the others what is transposed (chosen)
TOGETHER = 8  # tiles of pixels transposed before the first is multiplied, so that none waits
STRIP_BYTES = 40 * 1024  # of the input's and of the gradient's rows, per partition


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Rows `first` .. of the filter that share the partitions."""

    first: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """Columns k .. of the filter for a part: one PSUM bank of the result."""

    part: int
    k: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pixels:
    """At most 128 outputs: `rows` from `y` and `columns` from `x` of `images`."""

    images: int
    y: Affine
    rows: int
    x: int
    columns: int

    @property
    def count(self) -> int:
        return self.images * self.rows * self.columns


def _parts(spec: Convolution) -> list[_Part]:
    rows = spec.kernel[1]
    together = max(1, min(rows, P // spec.channels))
    return [_Part(first=i, rows=min(together, rows - i)) for i in range(0, rows, together)]


def _products(spec: Convolution) -> list[_Product]:
    found = []
    for number, part in enumerate(_parts(spec)):
        together = BANK // (part.rows * spec.channels)
        for k in range(0, spec.kernel[2], together):
            count = min(together, spec.kernel[2] - k)
            found.append(_Product(part=number, k=k, count=count))
    return found


def shares_partitions(spec: Convolution) -> bool:
    """Whether rows of the filter fit on the partitions together, and the products in PSUM."""
    flat = spec.kernel[0] == spec.sizes[0] == spec.outs[0] == 1
    several = spec.kernel[1] > 1 and 2 * spec.channels <= P
    return flat and several and len(_products(spec)) <= PRODUCTS


def weight_of_few_channels(spec: Convolution, b: Builder, schedule: Schedule) -> Program:
    """dw[g, f, c, taps] = the sum over b and the pixels of g[b, g, f, :] * x[b, g, c, shifted]."""
    return _FewChannels(b, spec, schedule).build()


class _FewChannels:
    def __init__(self, b: Builder, spec: Convolution, schedule: Schedule) -> None:
        self.b, self.spec, self.schedule = b, spec, schedule
        f, c, size = spec.filters, spec.channels, itemsize(spec.compute)
        self.g = b.hbm("g", (spec.batch, spec.groups * f, *spec.outs), spec.dtype, Role.INPUT)
        self.x = b.hbm("x", (spec.batch, spec.groups * c, *spec.sizes), spec.dtype, Role.INPUT)
        self.dw = b.hbm("dw", (spec.groups * f, c, spec.taps), spec.dtype, Role.OUTPUT)
        self.parts, self.products = _parts(spec), _products(spec)
        _, height, width = spec.outs
        self.columns = min(width, P)
        self.rows = max(1, min(height, P // self.columns))
        self.images = max(1, min(spec.batch, P // (height * width)))
        self.f_tiles = max(1, min(ceil(f / P), PRODUCTS // len(self.products)))
        self.pad = spec.axes[2].padding
        self.pitch = spec.sizes[2] + 2 * self.pad
        held = len(self.parts) * self.pitch + self.f_tiles * width
        fits = int(STRIP_BYTES / (held * self.images * size)) // self.rows * self.rows
        self.strip = max(self.rows, min(height, fits))
        self.high = inside_together(spec.axes[1].forward(self.strip), spec.kernel[1])
        self.x_rows = b.sbuf("x rows", self.images * self.strip * self.pitch, spec.compute, slots=2,
                             parts=len(self.parts))  # fmt: skip
        self.g_rows = b.sbuf("g rows", self.images * self.strip * width, spec.compute, slots=2,
                             parts=self.f_tiles)  # fmt: skip
        # Of every pixel its gradients, then for each part the columns of the filter.
        self.starts = [self.f_tiles * P if self.f_tiles > 1 else min(f, P)]
        for part in self.parts:
            self.starts.append(self.starts[-1] + spec.kernel[2] * part.rows * c)
        self.bank = int(BANK_BYTES / size)
        self.across = [(x, min(self.columns, width - x)) for x in range(0, width, self.columns)]
        self.together = max(1, TOGETHER // len(self.across))  # tiles of rows
        tiles, banks = self.together * len(self.across), self.f_tiles * len(self.products)
        self.transposed = b.psum("transposed", self.bank, spec.compute, slots=BANKS - banks)
        self.pixels = b.sbuf("pixels", tiles * self.starts[-1], spec.compute, slots=2)
        self.psum = b.psum("product", BANK, parts=self.f_tiles * len(self.products))
        self.sums = b.sbuf("sums", c * spec.taps, "float32", parts=self.f_tiles)
        self.stored = b.sbuf("stored", c * spec.taps, spec.dtype, slots=2)

    def build(self) -> Program:
        b, spec = self.b, self.spec
        with b.loop(spec.groups) as group:
            for f0, fs in b.tiles(spec.filters, self.f_tiles * P):
                tiles = [min(P, fs - start) for start in range(0, fs, P)]
                for part, _ in enumerate(tiles):
                    whole = columns(self.sums, P, self.sums.row_elements, part=part)
                    b.emit("memset", whole, value=0.0)
                for n0, images in b.tiles(spec.batch, self.images):
                    for high in self.high:
                        with b.loop(high.repeat) as j:
                            self._strip(group, f0, tiles, n0, images, high, j)
                for part, size in enumerate(tiles):
                    self._store(group * spec.filters + f0 + part * P, part, size)
        return b.build()

    def _strip(
        self, group: Affine, f0: Affine, tiles: list[int], n0: Affine, images: int, high: Strip,
        j: Affine,
    ) -> None:  # fmt: skip
        """Bring a strip, multiply all its pixels, and add to the sums."""
        b = self.b
        self._load_g(group, f0, tiles, n0, images, high, j)
        self._load_x(group, n0, images, high, j)
        b.fresh(self.psum)
        for together in self._groups(images, high.count):
            b.fresh(self.pixels)
            for number, pixels in enumerate(together):
                self._turn(tiles, pixels, number * self.starts[-1])
            for number, pixels in enumerate(together):
                self._multiply(tiles, pixels, number * self.starts[-1])
        self._add(tiles)

    def _groups(self, images: int, rows: int) -> Iterator[list[_Pixels]]:
        """All pixels of a strip, as many tiles as are transposed together."""
        for y0, some in self.b.tiles(rows, self.together * self.rows):
            yield [
                _Pixels(images=images, y=y0 + y, rows=min(self.rows, some - y), x=x, columns=size)
                for y in range(0, some, self.rows)
                for x, size in self.across
            ]

    # --- loads ---

    def _load_g(
        self, group: Affine, f0: Affine, tiles: list[int], n0: Affine, images: int, high: Strip,
        j: Affine,
    ) -> None:  # fmt: skip
        b, spec = self.b, self.spec
        volume, width, filters = prod(spec.outs), spec.outs[2], spec.groups * spec.filters
        run, y = (1, high.count * width), j * high.count + high.first
        b.fresh(self.g_rows)
        for part, size in enumerate(tiles):
            at = (n0 * filters + group * spec.filters + f0 + part * P) * volume + y * width
            images_there = several([(filters * volume, images)])
            source = Access(buffer=self.g, offset=at, pattern=((volume, size), *images_there, run))
            here = several([(self.strip * width, images)])
            pattern = ((self.g_rows.row_elements, size), *here, run)
            b.load(Access(buffer=self.g_rows, pattern=pattern, part=Affine(part)), source)

    def _load_x(self, group: Affine, n0: Affine, images: int, high: Strip, j: Affine) -> None:
        """For each row of the filter the rows of the input that its outputs multiply."""
        b, spec = self.b, self.spec
        channels, width, step = spec.groups * spec.channels, spec.sizes[2], spec.axes[1].stride
        volume, taps = prod(spec.sizes), {t.k: t for t in high.taps}
        b.fresh(self.x_rows)
        for number, part in enumerate(self.parts):
            wanted = [taps.get(part.first + i) for i in range(part.rows)]
            self._borders(number, part.rows * spec.channels, images, high.count, wanted)
            for i, tap in enumerate(wanted):
                if tap is None:
                    continue
                row = j * high.step + high.low + tap.there
                across = several([(channels * volume, images), (step * width, tap.count)])
                source = Access(
                    buffer=self.x,
                    offset=(n0 * channels + group * spec.channels) * volume + row * width,
                    pattern=((volume, spec.channels), *across, (1, width)),
                )
                held = self.x_rows.row_elements
                here = several([(self.strip * self.pitch, images), (self.pitch, tap.count)])
                to = Access(
                    buffer=self.x_rows,
                    offset=Affine(i * spec.channels * held + tap.own * self.pitch + self.pad),
                    pattern=((held, spec.channels), *here, (1, width)),
                    part=Affine(number),
                )
                b.load(to, source)

    def _borders(
        self, number: int, partitions: int, images: int, rows: int, wanted: Sequence[Tap | None]
    ) -> None:
        """Zeros beside the rows, and above and below where a row of the filter reaches outside."""
        first = max(t.own if t else rows for t in wanted)
        end = min(t.own + t.count if t else 0 for t in wanted)
        above, below = (0, 0, first, self.pitch), (end, 0, rows - end, self.pitch)
        sides = [(0, x, rows, self.pad) for x in (0, self.pitch - self.pad)]
        for y, x, height, width in (above, below, *sides):
            if not height * width:
                continue
            inner = [(self.strip * self.pitch, images), (self.pitch, height)]
            zeros = Access(
                buffer=self.x_rows,
                offset=Affine(y * self.pitch + x),
                pattern=((self.x_rows.row_elements, partitions), *several(inner), (1, width)),
                part=Affine(number),
            )
            self.b.emit("memset", zeros, engine=Engine.GPSIMD, value=0.0)

    # --- pixels ---

    def _views(self, tiles: list[int], pixels: _Pixels) -> Iterator[tuple[Access, int, int]]:
        """(what is transposed, its width, where it goes among a pixel's columns)."""
        spec, (images, rows) = self.spec, (pixels.images, pixels.rows)
        width, axis = spec.outs[2], spec.axes[2]
        for f, size in enumerate(tiles):
            inner = [(self.strip * width, images), (width, rows)]
            yield Access(
                buffer=self.g_rows,
                offset=pixels.y * width + pixels.x,
                pattern=((self.g_rows.row_elements, size), *several(inner), (1, pixels.columns)),
                part=Affine(f),
            ), size, f * P  # fmt: skip
        for (number, part), k in product(enumerate(self.parts), range(spec.kernel[2])):
            size = part.rows * spec.channels
            inner = [(self.strip * self.pitch, images), (self.pitch, rows)]
            at = pixels.x * axis.stride + k * axis.dilation
            yield Access(
                buffer=self.x_rows,
                offset=pixels.y * self.pitch + at,
                pattern=((self.x_rows.row_elements, size), *several(inner),
                         (axis.stride, pixels.columns)),
                part=Affine(number),
            ), size, self.starts[number] + k * size  # fmt: skip

    def _turn(self, tiles: list[int], pixels: _Pixels, base: int) -> None:
        """Gradients and shifted inputs of pixels, a PSUM bank at a time."""
        b, count = self.b, pixels.count
        views = list(self._views(tiles, pixels))
        while views:
            start, end, taken = views[0][2], views[0][2], 0
            while views and views[0][2] == end and end + views[0][1] - start <= self.bank:
                if not taken:
                    b.fresh(self.transposed)
                view, size, _ = views.pop(0)
                b.emit("nc_transpose", columns(self.transposed, count, size, end - start), view)
                end, taken = end + size, taken + 1
            to = columns(self.pixels, count, end - start, base + start)
            b.emit("tensor_copy", to, columns(self.transposed, count, end - start))

    def _multiply(self, tiles: list[int], pixels: _Pixels, base: int) -> None:
        b, count = self.b, pixels.count
        for (f, size), (number, p) in product(enumerate(tiles), enumerate(self.products)):
            wide = self.parts[p.part].rows * self.spec.channels
            bank = f * len(self.products) + number
            b.emit(
                "nc_matmul",
                columns(self.psum, size, p.count * wide, part=bank),
                columns(self.pixels, count, size, base + f * P),
                columns(
                    self.pixels, count, p.count * wide, base + self.starts[p.part] + p.k * wide
                ),
                load=self.schedule.load,
            )

    def _add(self, tiles: list[int]) -> None:
        """The products of a strip, which lie as [column of the filter, row of it, channel]."""
        b, spec = self.b, self.spec
        for (f, size), (number, p) in product(enumerate(tiles), enumerate(self.products)):
            part = self.parts[p.part]
            total = Access(
                buffer=self.sums,
                offset=Affine(part.first * spec.kernel[2] + p.k),
                pattern=((self.sums.row_elements, size), (1, p.count), (spec.kernel[2], part.rows),
                         (spec.taps, spec.channels)),
                part=Affine(f),
            )  # fmt: skip
            bank = f * len(self.products) + number
            made = columns(self.psum, size, p.count * part.rows * spec.channels, part=bank)
            b.emit("tensor_tensor", total, total, made, op="add")

    def _store(self, f: Affine, part: int, size: int) -> None:
        b, row = self.b, self.spec.channels * self.spec.taps
        b.fresh(self.stored)
        here = columns(self.stored, size, row)
        b.emit("tensor_copy", here, columns(self.sums, size, row, part=part))
        b.store(Access(buffer=self.dw, offset=f * row, pattern=((row, size), (1, row))), here)
