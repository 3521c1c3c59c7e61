"""Softmax and RMS normalization over the last dimension as engine programs, one row a partition."""

from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role

__all__ = ["rms_norm", "softmax"]

P = 128


def _at(
    buffer: Buffer, rows: int, count: int, offset: Affine | None = None, *, part: int = 0
) -> Access:
    row = buffer.row_elements
    return Access(
        buffer=buffer,
        offset=offset or Affine(),
        pattern=((row, rows), (1, count)),
        part=Affine(part),
    )


def softmax(
    rows: int, columns: int, *, chip: Chip, dtype: str = "bfloat16", cores: int = 1
) -> Program:
    """out[r, :] = exp(in[r, :] - max) / sum, in float32 between load and store.

    Two tiles of rows go together, so that the Vector engine has one's maximum and product to do
    while the Scalar engine does the other's exponentials.
    """
    rows = ceil(rows / cores)
    b = Builder(f"softmax {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (rows, columns), dtype, Role.OUTPUT)
    data = b.sbuf("data", columns, dtype, slots=2, parts=2)
    power = b.sbuf("power", columns, "float32", slots=1, parts=2)
    result = b.sbuf("result", columns, dtype, slots=2, parts=2)
    low, total, inverse = (
        b.sbuf(n, 1, "float32", slots=2, parts=2) for n in ("low", "total", "inverse")
    )
    for r0, pair in b.tiles(rows, 2 * P):
        b.fresh(data, power, result, low, total, inverse)
        halves = [(h, min(P, pair - h * P)) for h in range(ceil(pair / P))]
        for h, size in halves:
            at = (r0 + h * P) * columns
            b.load(_at(data, size, columns, part=h), _at(source, size, columns, at))
        for h, size in halves:
            whole = _at(data, size, columns, part=h)
            b.emit("tensor_reduce", _at(low, size, 1, part=h), whole, op="max", negate=True)
        for h, size in halves:
            sums = (_at(power, size, columns, part=h), _at(total, size, 1, part=h))
            whole = _at(data, size, columns, part=h)
            b.emit("activation_reduce", sums, whole, _at(low, size, 1, part=h), op="exp")
        for h, size in halves:
            of_row = _at(inverse, size, 1, part=h)
            b.emit("reciprocal", of_row, _at(total, size, 1, part=h))
            scaled = _at(result, size, columns, part=h)
            whole = _at(power, size, columns, part=h)
            b.emit("tensor_scalar", scaled, whole, of_row, op0="multiply")
            b.store(_at(out, size, columns, (r0 + h * P) * columns), scaled)
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
