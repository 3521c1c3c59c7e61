"""Adaptive average pooling with windows of several sizes: rows first, then columns."""

from math import ceil

from ...chip import Chip
from ...isa import Access, Affine, Buffer, Builder, Program, Role
from ..limits import P

__all__ = ["adaptive_average", "adaptive_average_backward"]

Size = tuple[int, ...]


def _window(o: int, out: int, size: int) -> tuple[int, int]:
    """First input of output o, and how many."""
    first = o * size // out
    return first, -(-(o + 1) * size // out) - first


def _view(buffer: Buffer, planes: int, offset: int, *inner: tuple[int, int]) -> Access:
    pattern = ((buffer.row_elements, planes), *inner)
    return Access(buffer=buffer, offset=Affine(offset), pattern=pattern)


def _flat(hbm: Buffer, p0: Affine, planes: int, area: int) -> Access:
    return Access(buffer=hbm, offset=p0 * area, pattern=((area, planes), (1, area)))


def _average(b: Builder, to: Access, windows: Access, count: int) -> None:
    b.emit("tensor_reduce", to, windows, op="add")
    b.emit("tensor_scalar", to, to, op0="multiply", imm0=1 / count)


def adaptive_average(
    planes: int, size: Size, out: Size, *, dtype: str, chip: Chip, cores: int = 1
) -> Program:
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
        b.load(_view(data, some, 0, (1, height * width)), _flat(x, p0, some, height * width))
        for o in range(rows):
            first, count = _window(o, rows, height)
            to = _view(half, some, o * width, (1, width))
            _average(b, to, _view(data, some, first * width, (1, width), (width, count)), count)
        for o in range(columns):
            first, count = _window(o, columns, width)
            to = _view(done, some, o, (columns, rows))
            _average(b, to, _view(half, some, first, (width, rows), (1, count)), count)
        b.store(_flat(y, p0, some, rows * columns), _view(done, some, 0, (1, rows * columns)))
    return b.build()


def adaptive_average_backward(
    planes: int, size: Size, out: Size, *, dtype: str, chip: Chip, cores: int = 1
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
        b.load(_view(data, some, 0, (1, rows * columns)), _flat(g, p0, some, rows * columns))
        b.emit("memset", _view(half, some, 0, (1, rows * width)), value=0.0)
        b.emit("memset", _view(total, some, 0, (1, area)), value=0.0)
        for o in range(columns):
            first, count = _window(o, columns, width)
            b.fresh(share)
            each = _view(share, some, 0, (1, rows))
            source = _view(data, some, o, (columns, rows))
            b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
            into = _view(half, some, first, (width, rows), (1, count))
            repeated = _view(share, some, 0, (1, rows), (0, count))
            b.emit("tensor_tensor", into, into, repeated, op="add")
        for o in range(rows):
            first, count = _window(o, rows, height)
            b.fresh(share)
            each = _view(share, some, 0, (1, width))
            source = _view(half, some, o * width, (1, width))
            b.emit("tensor_scalar", each, source, op0="multiply", imm0=1 / count)
            into = _view(total, some, first * width, (width, count), (1, width))
            repeated = _view(share, some, 0, (0, count), (1, width))
            b.emit("tensor_tensor", into, into, repeated, op="add")
        b.emit("tensor_copy", _view(done, some, 0, (1, area)), _view(total, some, 0, (1, area)))
        b.store(_flat(dx, p0, some, area), _view(done, some, 0, (1, area)))
    return b.build()
