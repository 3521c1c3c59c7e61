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
        b.load(data.rows(some, area), x.lanes(some, (1, area), at=p0 * area))
        for o in range(rows):
            first, count = _window(o, rows, height)
            to = half.rows(some, width, o * width)
            taps = data.lanes(some, (1, width), (width, count), at=first * width)
            _average(b, to, taps, count)
        for o in range(columns):
            first, count = _window(o, columns, width)
            to = done.lanes(some, (columns, rows), at=o)
            taps = half.lanes(some, (width, rows), (1, count), at=first)
            _average(b, to, taps, count)
        made = rows * columns
        b.store(y.lanes(some, (1, made), at=p0 * made), done.rows(some, made))
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
        b.load(data.rows(some, given), g.lanes(some, (1, given), at=p0 * given))
        b.emit("memset", half.rows(some, rows * width), value=0.0)
        b.emit("memset", total.rows(some, area), value=0.0)
        for o in range(columns):
            first, count = _window(o, columns, width)
            b.fresh(share)
            each = share.rows(some, rows)
            source = data.lanes(some, (columns, rows), at=o)
            b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
            into = half.lanes(some, (width, rows), (1, count), at=first)
            repeated = share.lanes(some, (1, rows), (0, count))
            b.emit("tensor_tensor", into, into, repeated, op="add")
        for o in range(rows):
            first, count = _window(o, rows, height)
            b.fresh(share)
            each = share.rows(some, width)
            source = half.rows(some, width, o * width)
            b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
            into = total.lanes(some, (width, count), (1, width), at=first * width)
            repeated = share.lanes(some, (0, count), (1, width))
            b.emit("tensor_tensor", into, into, repeated, op="add")
        b.emit("tensor_copy", done.rows(some, area), total.rows(some, area))
        b.store(dx.lanes(some, (1, area), at=p0 * area), done.rows(some, area))
    return b.build()
