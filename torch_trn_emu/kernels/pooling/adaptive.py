"""Adaptive average pooling with windows of several sizes: rows first, then columns."""

from math import ceil

from ...isa import Access, Builder, Program, Role, partitions_of, rows_of
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


def adaptive_average(planes: int, size: Size, out: Size, *, dtype: str, cores: int = 1) -> Program:
    """y[p, a, b] = the mean of x over window (a, b); planes on partitions, whole in SBUF."""
    planes = ceil(planes / cores)
    (height, width), (rows, columns) = size, out
    b = Builder(f"adaptive {height}x{width} to {rows}x{columns}", cores=cores)
    x = b.hbm("x", (planes, height, width), dtype, Role.INPUT)
    y = b.hbm("y", (planes, rows, columns), dtype, Role.OUTPUT)
    data = b.sbuf("data", height * width, dtype, slots=2)
    half = b.sbuf("rows", rows * width, "float32", slots=2)
    done = b.sbuf("done", rows * columns, dtype, slots=2)
    for p0, some in b.tiles(planes, P):
        b.fresh(data, half, done)
        area = height * width
        b.load(rows_of(data, some, area), partitions_of(x, some, (1, area), at=p0 * area))
        for o in range(rows):
            first, count = _window(o, rows, height)
            to = rows_of(half, some, width, o * width)
            taps = partitions_of(data, some, (1, width), (width, count), at=first * width)
            _average(b, to, taps, count)
        for o in range(columns):
            first, count = _window(o, columns, width)
            to = partitions_of(done, some, (columns, rows), at=o)
            taps = partitions_of(half, some, (width, rows), (1, count), at=first)
            _average(b, to, taps, count)
        made = rows * columns
        b.store(partitions_of(y, some, (1, made), at=p0 * made), rows_of(done, some, made))
    return b.build()


def adaptive_average_backward(
    planes: int, size: Size, out: Size, *, dtype: str, cores: int = 1
) -> Program:
    """Every input gets its share of the gradients of the windows that it lies in."""
    planes = ceil(planes / cores)
    (height, width), (rows, columns) = size, out
    b = Builder(f"adaptive_backward {height}x{width}", cores=cores)
    g = b.hbm("g", (planes, rows, columns), dtype, Role.INPUT)
    dx = b.hbm("dx", (planes, height, width), dtype, Role.OUTPUT)
    data = b.sbuf("data", rows * columns, dtype, slots=2)
    half = b.sbuf("columns", rows * width, "float32", slots=2)
    total = b.sbuf("sum", height * width, "float32")
    done = b.sbuf("done", height * width, dtype, slots=2)
    share = b.sbuf("share", max(rows, width), "float32", slots=2)
    for p0, some in b.tiles(planes, P):
        b.fresh(data, half, done)
        area = height * width
        given = rows * columns
        b.load(rows_of(data, some, given), partitions_of(g, some, (1, given), at=p0 * given))
        b.emit("memset", rows_of(half, some, rows * width), value=0.0)
        b.emit("memset", rows_of(total, some, area), value=0.0)
        for o in range(columns):
            first, count = _window(o, columns, width)
            b.fresh(share)
            each = rows_of(share, some, rows)
            source = partitions_of(data, some, (columns, rows), at=o)
            b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
            into = partitions_of(half, some, (width, rows), (1, count), at=first)
            repeated = partitions_of(share, some, (1, rows), (0, count))
            b.emit("tensor_tensor", into, into, repeated, op="add")
        for o in range(rows):
            first, count = _window(o, rows, height)
            b.fresh(share)
            each = rows_of(share, some, width)
            source = rows_of(half, some, width, o * width)
            b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
            into = partitions_of(total, some, (width, count), (1, width), at=first * width)
            repeated = partitions_of(share, some, (0, count), (1, width))
            b.emit("tensor_tensor", into, into, repeated, op="add")
        b.emit("tensor_copy", rows_of(done, some, area), rows_of(total, some, area))
        b.store(partitions_of(dx, some, (1, area), at=p0 * area), rows_of(done, some, area))
    return b.build()
