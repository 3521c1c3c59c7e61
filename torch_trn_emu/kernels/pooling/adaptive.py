"""Adaptive average pooling with windows of several sizes: rows first, then columns."""

from math import ceil

from ...isa import Access, Builder, Program, Role
from ..limits import P

__all__ = ["adaptive_average", "adaptive_average_backward"]

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


def adaptive_average(
    planes: int, size: Size, out: Size, *, dtype: str, band: int, cores: int = 1
) -> Program:
    """y[p, a, b] = the mean of x over window (a, b); planes on partitions, `band` of their output
    rows at a time.
    """
    planes = ceil(planes / cores)
    (height, width), (rows, columns) = size, out
    b = Builder(f"adaptive {height}x{width} to {rows}x{columns}", cores=cores)
    x = b.hbm("x", (planes, height, width), dtype, Role.INPUT)
    y = b.hbm("y", (planes, rows, columns), dtype, Role.OUTPUT)
    bands = [(r, min(band, rows - r)) for r in range(0, rows, band)]
    read = [_windows(r, count, rows, height) for r, count in bands]
    data = b.sbuf("data", max(end - start for start, end in read) * width, dtype, slots=2)
    half = b.sbuf("rows", min(band, rows) * width, "float32", slots=2)
    done = b.sbuf("done", min(band, rows) * columns, dtype, slots=2)
    for p0, some in b.tiles(planes, P):
        for (row, made), (start, end) in zip(bands, read, strict=True):
            b.fresh(data, half, done)
            area = (end - start) * width
            source = x.lanes(some, (1, area), at=p0 * (height * width) + start * width)
            b.load(data.rows(some, area), source)
            for o in range(made):
                first, count = _window(row + o, rows, height)
                to = half.rows(some, width, o * width)
                at = (first - start) * width
                _average(b, to, data.lanes(some, (1, width), (width, count), at=at), count)
            for o in range(columns):
                first, count = _window(o, columns, width)
                to = done.lanes(some, (columns, made), at=o)
                taps = half.lanes(some, (width, made), (1, count), at=first)
                _average(b, to, taps, count)
            given = made * columns
            to = y.lanes(some, (1, given), at=p0 * (rows * columns) + row * columns)
            b.store(to, done.rows(some, given))
    return b.build()


def adaptive_average_backward(
    planes: int, size: Size, out: Size, *, dtype: str, band: int, cores: int = 1
) -> Program:
    """Every input gets its share of the gradients of the windows that it lies in; planes on
    partitions, `band` of their input rows at a time.
    """
    planes = ceil(planes / cores)
    (height, width), (rows, columns) = size, out
    b = Builder(f"adaptive_backward {height}x{width}", cores=cores)
    g = b.hbm("g", (planes, rows, columns), dtype, Role.INPUT)
    dx = b.hbm("dx", (planes, height, width), dtype, Role.OUTPUT)
    bands = [(r, min(r + band, height)) for r in range(0, height, band)]
    given = [_outputs_of(start, end, rows, height) for start, end in bands]
    most, high = max(last - first for first, last in given), min(band, height)
    data = b.sbuf("data", most * columns, dtype, slots=2)
    half = b.sbuf("columns", most * width, "float32", slots=2)
    total = b.sbuf("sum", high * width, "float32")
    done = b.sbuf("done", high * width, dtype, slots=2)
    share = b.sbuf("share", max(most, width), "float32", slots=2)
    for p0, some in b.tiles(planes, P):
        for (start, end), (one, last) in zip(bands, given, strict=True):
            taken, area = last - one, (end - start) * width
            b.fresh(data, half, done)
            source = g.lanes(some, (1, taken * columns), at=p0 * (rows * columns) + one * columns)
            b.load(data.rows(some, taken * columns), source)
            b.emit("memset", half.rows(some, taken * width), value=0.0)
            b.emit("memset", total.rows(some, area), value=0.0)
            for o in range(columns):
                first, count = _window(o, columns, width)
                b.fresh(share)
                source = data.lanes(some, (columns, taken), at=o)
                each = share.rows(some, taken)
                b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
                into = half.lanes(some, (width, taken), (1, count), at=first)
                repeated = share.lanes(some, (1, taken), (0, count))
                b.emit("tensor_tensor", into, into, repeated, op="add")
            for o in range(one, last):
                first, count = _window(o, rows, height)
                low, high = max(first, start), min(first + count, end)
                b.fresh(share)
                source, each = half.rows(some, width, (o - one) * width), share.rows(some, width)
                b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
                at = (low - start) * width
                into = total.lanes(some, (width, high - low), (1, width), at=at)
                repeated = share.lanes(some, (0, high - low), (1, width))
                b.emit("tensor_tensor", into, into, repeated, op="add")
            b.emit("tensor_copy", done.rows(some, area), total.rows(some, area))
            to = dx.lanes(some, (1, area), at=p0 * (height * width) + start * width)
            b.store(to, done.rows(some, area))
    return b.build()


def _outputs_of(start: int, end: int, out: int, size: int) -> tuple[int, int]:
    """First output whose window has an input of [start, end), and the one after the last."""
    first = next(o for o in range(out) if sum(_window(o, out, size)) > start)
    last = next(o for o in reversed(range(out)) if _window(o, out, size)[0] < end)
    return first, last + 1
