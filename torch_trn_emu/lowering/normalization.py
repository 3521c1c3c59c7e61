"""Softmax and RMS normalization over the last dimension as engine programs, one row a partition."""

from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role

__all__ = ["rms_norm", "softmax"]

P = 128


def _at(buffer: Buffer, rows: int, count: int, offset: Affine | None = None) -> Access:
    row = buffer.row_elements
    return Access(buffer=buffer, offset=offset or Affine(), pattern=((row, rows), (1, count)))


def softmax(
    rows: int, columns: int, *, chip: Chip, dtype: str = "bfloat16", cores: int = 1
) -> Program:
    """out[r, :] = exp(in[r, :] - max) / sum, in float32 between load and store."""
    rows = ceil(rows / cores)
    b = Builder(f"softmax {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (rows, columns), dtype, Role.OUTPUT)
    data = b.sbuf("data", columns, dtype, slots=3)
    power = b.sbuf("power", columns, "float32", slots=2)
    result = b.sbuf("result", columns, dtype, slots=2)
    low, total, inverse = (b.sbuf(n, 1, "float32", slots=2) for n in ("low", "total", "inverse"))
    for r0, size in b.tiles(rows, P):
        b.fresh(data, power, result, low, total, inverse)
        whole, one = (lambda t, s=size: _at(t, s, columns)), (lambda t, s=size: _at(t, s, 1))
        b.load(whole(data), _at(source, size, columns, r0 * columns))
        b.emit("tensor_reduce", one(low), whole(data), op="max", negate=True)
        sums = (whole(power), one(total))
        b.emit("activation_reduce", sums, whole(data), one(low), op="exp")
        b.emit("reciprocal", one(inverse), one(total))
        b.emit("tensor_scalar", whole(result), whole(power), one(inverse), op0="multiply")
        b.store(_at(out, size, columns, r0 * columns), whole(result))
    return b.build()


def rms_norm(
    rows: int,
    columns: int,
    *,
    chip: Chip,
    dtype: str = "bfloat16",
    eps: float = 1e-6,
    cores: int = 1,
) -> Program:
    """out[r, :] = in[r, :] * weight / sqrt(mean(in[r, :]^2) + eps)."""
    rows = ceil(rows / cores)
    b = Builder(f"rms_norm {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    weight = b.hbm("weight", (1, columns), dtype, Role.WEIGHT)
    out = b.hbm("out", (rows, columns), dtype, Role.OUTPUT)
    data = b.sbuf("data", columns, dtype, slots=3)
    gain = b.sbuf("gain", columns, dtype)
    square = b.sbuf("square", columns, "float32", slots=2)
    result = b.sbuf("result", columns, dtype, slots=2)
    stats = b.sbuf("stats", 2, "float32", slots=2)
    every_row = Access(buffer=weight, pattern=((0, P), (1, columns)))
    b.load(_at(gain, P, columns), every_row)
    for r0, size in b.tiles(rows, P):
        b.fresh(data, square, result, stats)
        whole = _at(data, size, columns)
        total, scale = _at(stats, size, 1), _at(stats, size, 1, Affine(1))
        b.load(whole, _at(source, size, columns, r0 * columns))
        b.emit("activation_reduce", (_at(square, size, columns), total), whole, op="square")
        b.emit(
            "tensor_scalar", total, total, op0="multiply", imm0=1.0 / columns, op1="add", imm1=eps
        )
        b.emit("activation", scale, total, op="rsqrt")
        b.emit(
            "scalar_tensor_tensor",
            _at(result, size, columns),
            whole,
            scale,
            _at(gain, size, columns),
            op0="multiply",
            op1="multiply",
        )
        b.store(_at(out, size, columns, r0 * columns), _at(result, size, columns))
    return b.build()
