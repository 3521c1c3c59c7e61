"""Adaptive average pooling with windows of several sizes: rows first, then columns."""

from dataclasses import dataclass, replace
from math import ceil

from ...isa import Access, Affine, Buffer, Builder, Program, Role
from ..limits import P

__all__ = ["LEAST_READ", "Bands", "adaptive_average", "adaptive_average_backward"]

LEAST_READ = 16  # rows of a window that are loaded at once, before rows are cut (chosen)

Size = tuple[int, ...]


def _window(o: int, out: int, size: int) -> tuple[int, int]:
    """First input of output o, and how many."""
    first = o * size // out
    return first, -(-(o + 1) * size // out) - first


def _average(b: Builder, to: Access, windows: Access, count: int) -> None:
    b.emit("tensor_reduce", to, windows, op="add")
    b.emit("tensor_scalar", to, to, op0="multiply", imm0=1 / count)


def _windows(first: int, count: int, out: int, size: int) -> tuple[int, int]:
    """First input of outputs [first, first + count), and the one after the last."""
    last, taps = _window(first + count - 1, out, size)
    return _window(first, out, size)[0], last + taps


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """What is worked on at once: rows and columns that are made, and rows that a window reads.

    least  rows that are made, before other things are cut
    """

    rows: int
    columns: int
    read: int
    least: int = 1

    def smaller(self) -> "Bands | None":
        """What needs less of SBUF; None of the least there is."""
        if self.rows > self.least:
            return replace(self, rows=max(self.least, ceil(self.rows / 2)))
        if self.read > LEAST_READ:
            return replace(self, read=ceil(self.read / 2))
        for name in ("columns", "rows", "read"):
            if getattr(self, name) > 1:
                return replace(self, **{name: ceil(getattr(self, name) / 2)})
        return None


def _in(extent: int, step: int) -> list[tuple[int, int]]:
    """Pieces of `extent`: (first, one past the last)."""
    return [(first, min(first + step, extent)) for first in range(0, extent, step)]


def adaptive_average(
    planes: int, size: Size, out: Size, *, dtype: str, bands: Bands, cores: int = 1
) -> Program:
    """y[p, a, b] = the mean of x over window (a, b); planes on partitions."""
    planes = ceil(planes / cores)
    (height, width), (rows, columns) = size, out
    b = Builder(f"adaptive {height}x{width} to {rows}x{columns}", cores=cores)
    x = b.hbm("x", (planes, height, width), dtype, Role.INPUT)
    y = b.hbm("y", (planes, rows, columns), dtype, Role.OUTPUT)
    _Forward(b, (x, y), size, out, bands).build()
    return b.build()


class _Forward:
    def __init__(
        self, b: Builder, tensors: tuple[Buffer, Buffer], size: Size, out: Size, bands: Bands
    ) -> None:
        self.b, (self.x, self.y), self.size, self.out = b, tensors, size, out
        self.rows, self.columns = _in(out[0], bands.rows), _in(out[1], bands.columns)
        dtype = self.x.dtype
        across = max(self._read(piece, 1)[1] for piece in self.columns)
        tall = max(self._read(piece, 0)[1] for piece in self.rows)
        self.most = tall if bands.rows > 1 else min(tall, bands.read)
        made = min(bands.rows, out[0])
        self.data = b.sbuf("data", self.most * across, dtype, slots=2)
        self.half = b.sbuf("rows", made * across, "float32", slots=2)
        self.done = b.sbuf("done", made * min(bands.columns, out[1]), dtype, slots=2)
        if self.most < tall:
            self.more = b.sbuf("more rows", across, "float32", slots=2)

    def _read(self, piece: tuple[int, int], axis: int) -> tuple[int, int]:
        """First input of a piece of the outputs, and how many."""
        first, end = _windows(piece[0], piece[1] - piece[0], self.out[axis], self.size[axis])
        return first, end - first

    def build(self) -> None:
        for p0, some in self.b.tiles(self.x.shape[0], P):
            for columns in self.columns:
                for rows in self.rows:
                    self._band(p0, some, rows, columns)

    def _band(self, p0: Affine, some: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        b, (height, width) = self.b, self.size
        made, across = rows[1] - rows[0], columns[1] - columns[0]
        (start, tall), (low, wide) = self._read(rows, 0), self._read(columns, 1)
        b.fresh(self.half, self.done)
        at = p0 * (height * width) + start * width + low
        if tall > self.most:
            self._sum_in_parts(at, some, tall, wide)
        else:
            self._load(at, some, tall, wide)
            for o in range(made):
                first, count = _window(rows[0] + o, self.out[0], height)
                to = self.half.rows(some, wide, o * wide)
                taps = (1, wide), (wide, count)
                _average(b, to, self.data.lanes(some, *taps, at=(first - start) * wide), count)
        for o in range(across):
            first, count = _window(columns[0] + o, self.out[1], width)
            to = self.done.lanes(some, (across, made), at=o)
            taps = (wide, made), (1, count)
            _average(b, to, self.half.lanes(some, *taps, at=first - low), count)
        at = p0 * (self.out[0] * self.out[1]) + rows[0] * self.out[1] + columns[0]
        there = self.y.lanes(some, *_part(self.out[1], made, across), at=at)
        b.store(there, self.done.rows(some, made * across))

    def _load(self, at: Affine, some: int, rows: int, wide: int) -> None:
        self.b.fresh(self.data)
        source = self.x.lanes(some, *_part(self.size[1], rows, wide), at=at)
        self.b.load(self.data.rows(some, rows * wide), source)

    def _sum_in_parts(self, at: Affine, some: int, tall: int, wide: int) -> None:
        """The mean of one output's rows, of which SBUF holds some at a time."""
        b, to = self.b, self.half.rows(some, wide)
        b.emit("memset", to, value=0.0)
        for row, rows in b.tiles(tall, self.most):
            self._load(at + row * self.size[1], some, rows, wide)
            b.fresh(self.more)
            part = self.more.rows(some, wide)
            taps = (1, wide), (wide, rows)
            b.emit("tensor_reduce", part, self.data.lanes(some, *taps), op="add")
            b.emit("tensor_tensor", to, to, part, op="add")
        b.emit("tensor_scalar", to, to, op0="multiply", imm0=1 / tall)


def _part(width: int, rows: int, wide: int) -> list[tuple[int, int]]:
    """`wide` columns of rows of `width`."""
    return [(1, rows * width)] if wide == width else [(width, rows), (1, wide)]


def adaptive_average_backward(
    planes: int, size: Size, out: Size, *, dtype: str, bands: Bands, cores: int = 1
) -> Program:
    """Every input gets its share of the gradients of the windows that it lies in; planes on
    partitions.
    """
    planes = ceil(planes / cores)
    b = Builder(f"adaptive_backward {size[0]}x{size[1]}", cores=cores)
    g = b.hbm("g", (planes, *out), dtype, Role.INPUT)
    dx = b.hbm("dx", (planes, *size), dtype, Role.OUTPUT)
    _Backward(b, (g, dx), size, out, bands).build()
    return b.build()


class _Backward:
    def __init__(
        self, b: Builder, tensors: tuple[Buffer, Buffer], size: Size, out: Size, bands: Bands
    ) -> None:
        self.b, (self.g, self.dx), self.size, self.out = b, tensors, size, out
        self.rows, self.columns = _in(size[0], bands.rows), _in(size[1], bands.columns)
        dtype, high, wide = self.g.dtype, min(bands.rows, size[0]), min(bands.columns, size[1])
        given = [_outputs_of(*piece, out[0], size[0]) for piece in self.rows]
        most = max(last - first for first, last in given)
        self.data = b.sbuf("data", most * out[1], dtype, slots=2)
        self.half = b.sbuf("columns", most * wide, "float32", slots=2)
        self.total = b.sbuf("sum", high * wide, "float32")
        self.done = b.sbuf("done", high * wide, dtype, slots=2)
        self.share = b.sbuf("share", max(most, wide), "float32", slots=2)

    def build(self) -> None:
        for p0, some in self.b.tiles(self.g.shape[0], P):
            for columns in self.columns:
                for rows in self.rows:
                    self._band(p0, some, rows, columns)

    def _band(self, p0: Affine, some: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        b, (height, width), (many, across) = self.b, self.size, self.out
        one, last = _outputs_of(*rows, many, height)
        taken, high, wide = last - one, rows[1] - rows[0], columns[1] - columns[0]
        b.fresh(self.data, self.half, self.done)
        source = self.g.lanes(some, (1, taken * across), at=p0 * (many * across) + one * across)
        b.load(self.data.rows(some, taken * across), source)
        b.emit("memset", self.half.rows(some, taken * wide), value=0.0)
        b.emit("memset", self.total.rows(some, high * wide), value=0.0)
        self._over_columns(some, taken, columns)
        self._over_rows(some, (one, last), rows, wide)
        done = self.done.rows(some, high * wide)
        b.emit("tensor_copy", done, self.total.rows(some, high * wide))
        at = p0 * (height * width) + rows[0] * width + columns[0]
        b.store(self.dx.lanes(some, *_part(width, high, wide), at=at), done)

    def _over_columns(self, some: int, taken: int, columns: tuple[int, int]) -> None:
        b, width, across, wide = self.b, self.size[1], self.out[1], columns[1] - columns[0]
        for o in range(*_outputs_of(*columns, across, width)):
            first, count = _window(o, across, width)
            low, high = max(first, columns[0]), min(first + count, columns[1])
            b.fresh(self.share)
            each = self.share.rows(some, taken)
            source = self.data.lanes(some, (across, taken), at=o)
            b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
            at = low - columns[0]
            into = self.half.lanes(some, (wide, taken), (1, high - low), at=at)
            repeated = self.share.lanes(some, (1, taken), (0, high - low))
            b.emit("tensor_tensor", into, into, repeated, op="add")

    def _over_rows(
        self, some: int, outputs: tuple[int, int], rows: tuple[int, int], wide: int
    ) -> None:
        b, height = self.b, self.size[0]
        for o in range(*outputs):
            first, count = _window(o, self.out[0], height)
            low, high = max(first, rows[0]), min(first + count, rows[1])
            b.fresh(self.share)
            source = self.half.rows(some, wide, (o - outputs[0]) * wide)
            each = self.share.rows(some, wide)
            b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
            at = (low - rows[0]) * wide
            into = self.total.lanes(some, (wide, high - low), (1, wide), at=at)
            repeated = self.share.lanes(some, (0, high - low), (1, wide))
            b.emit("tensor_tensor", into, into, repeated, op="add")


def _outputs_of(start: int, end: int, out: int, size: int) -> tuple[int, int]:
    """First output whose window has an input of [start, end), and the one after the last."""
    first = next(o for o in range(out) if sum(_window(o, out, size)) > start)
    last = next(o for o in reversed(range(out)) if _window(o, out, size)[0] < end)
    return first, last + 1
