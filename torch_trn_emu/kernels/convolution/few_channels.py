"""The gradient for the weights of a convolution with few channels, such as a network's first.

Pixels are contracted, so they have to lie on partitions; the Tensor engine transposes the input.
Channels alone would fill few of the array's rows: rows of the filter share them, each with its rows
of the input shifted, as in the forward pass. A strip of rows is brought once, and the products of
its pixels add up in PSUM.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

from ...isa import Access, Affine, Builder, Engine, Program, itemsize
from ..limits import BANK, BANK_BYTES, BANKS, P
from ..matmul.blocking import Schedule
from ..planes import several
from ..windows import Tap, inside_together
from .shape import Convolution, Work, all_work
from .weight_sums import WeightSums, tiles_of

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


class _FewChannels(WeightSums):
    def __init__(self, b: Builder, spec: Convolution, schedule: Schedule) -> None:
        super().__init__(b, spec, schedule)
        f, c, size = spec.filters, spec.channels, itemsize(spec.compute)
        _, height, width = spec.outs
        self.parts, self.products = _parts(spec), _products(spec)
        self.f_tiles = max(1, min(ceil(f / P), PRODUCTS // len(self.products)))
        held = len(self.parts) * self.pitch + self.f_tiles * width
        fits = int(STRIP_BYTES / (held * self.images * size)) // self.rows * self.rows
        self.strip = max(self.rows, min(height, fits))
        self.deep = spec.axes[0].forward(1)
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
                tiles, filters = tiles_of(fs), group * spec.filters + f0
                for part, _ in enumerate(tiles):
                    whole = self.sums.rows(P, self.sums.row_elements, part=part)
                    b.emit("memset", whole, value=0.0)
                for work in all_work(b, spec.batch, group, self.images, (self.deep, self.high), 1):
                    self.load_g(filters, tiles, work)
                    self._load_x(work)
                    self._multiply_all(tiles, work.images, work.high.count)
                for part, size in enumerate(tiles):
                    self.store(filters + part * P, size, Affine(), spec.channels, part)
        return b.build()

    def _multiply_all(self, tiles: list[int], images: int, rows: int) -> None:
        """The products of all pixels of a strip, added to the sums."""
        b = self.b
        b.fresh(self.psum)
        for together in self._groups(images, rows):
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

    def _load_x(self, work: Work) -> None:
        """For each row of the filter the rows of the input that its outputs multiply."""
        b, spec, (group, n0, images, _, high, j, _) = self.b, self.spec, work
        width, step, taps = spec.sizes[2], spec.axes[1].stride, {t.k: t for t in high.taps}
        channel, c = n0 * self.x.channels + group * spec.channels, spec.channels
        b.fresh(self.x_rows)
        for number, part in enumerate(self.parts):
            wanted = [taps.get(part.first + i) for i in range(part.rows)]
            self._borders(number, part.rows * spec.channels, images, high.count, wanted)
            for i, tap in enumerate(wanted):
                if tap is None:
                    continue
                there = (j * high.step + high.low + tap.there, tap.count)
                source = self.x.rows(channel, c, images, (0, 1), there, step=step, apart=True)
                here = several([(self.strip * self.pitch, images), (self.pitch, tap.count)])
                at = tap.own * self.pitch + self.pad + i * c * self.x_rows.row_elements
                to = self.x_rows.lanes(c, *here, (1, width), at=at, part=number)
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
            inner, at = [*several(inner), (1, width)], y * self.pitch + x
            zeros = self.x_rows.lanes(partitions, *inner, at=at, part=number)
            self.b.emit("memset", zeros, engine=Engine.GPSIMD, value=0.0)

    # --- pixels ---

    def _views(self, tiles: list[int], pixels: _Pixels) -> Iterator[tuple[Access, int, int]]:
        """(what is transposed, its width, where it goes among a pixel's columns)."""
        spec, (images, rows) = self.spec, (pixels.images, pixels.rows)
        width, axis = spec.outs[2], spec.axes[2]
        for f, size in enumerate(tiles):
            inner = [*several([(self.strip * width, images), (width, rows)]), (1, pixels.columns)]
            at = pixels.y * width + pixels.x
            yield self.g_rows.lanes(size, *inner, at=at, part=f), size, f * P
        for (number, part), k in product(enumerate(self.parts), range(spec.kernel[2])):
            size = part.rows * spec.channels
            inner = several([(self.strip * self.pitch, images), (self.pitch, rows)])
            inner = [*inner, (axis.stride, pixels.columns)]
            at = pixels.y * self.pitch + (pixels.x * axis.stride + k * axis.dilation)
            view = self.x_rows.lanes(size, *inner, at=at, part=number)
            yield view, size, self.starts[number] + k * size

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
                b.emit("nc_transpose", self.transposed.rows(count, size, end - start), view)
                end, taken = end + size, taken + 1
            to = self.pixels.rows(count, end - start, base + start)
            b.emit("tensor_copy", to, self.transposed.rows(count, end - start))

    def _multiply(self, tiles: list[int], pixels: _Pixels, base: int) -> None:
        b, count = self.b, pixels.count
        for (f, size), (number, p) in product(enumerate(tiles), enumerate(self.products)):
            wide = self.parts[p.part].rows * self.spec.channels
            bank = f * len(self.products) + number
            b.emit(
                "nc_matmul",
                self.psum.rows(size, p.count * wide, part=bank),
                self.pixels.rows(count, size, base + f * P),
                self.pixels.rows(count, p.count * wide, base + self.starts[p.part] + p.k * wide),
                load=self.schedule.load,
            )

    def _add(self, tiles: list[int]) -> None:
        """The products of a strip, which lie as [column of the filter, row of it, channel]."""
        b, spec = self.b, self.spec
        for (f, size), (number, p) in product(enumerate(tiles), enumerate(self.products)):
            part = self.parts[p.part]
            sums = ((1, p.count), (spec.kernel[2], part.rows), (spec.taps, spec.channels))
            at = part.first * spec.kernel[2] + p.k
            total = self.sums.lanes(size, *sums, at=at, part=f)
            bank = f * len(self.products) + number
            made = self.psum.rows(size, p.count * part.rows * spec.channels, part=bank)
            b.emit("tensor_tensor", total, total, made, op="add")
