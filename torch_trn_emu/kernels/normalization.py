"""Softmax, layer and RMS normalization over the last dimension, one row a partition.

Two tiles of rows go together, so that the engines take turns instead of waiting.
"""

from math import ceil

from ..chip import Chip
from ..isa import Access, Builder, Program, Role, rows_of
from .limits import BN_STATS, P

__all__ = ["layer_norm", "rms_norm", "softmax"]


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
            b.load(rows_of(data, size, columns, part=h), rows_of(source, size, columns, at))
        for h, size in halves:
            whole = rows_of(data, size, columns, part=h)
            b.emit("tensor_reduce", rows_of(low, size, 1, part=h), whole, op="max", negate=True)
        for h, size in halves:
            sums = (rows_of(power, size, columns, part=h), rows_of(total, size, 1, part=h))
            whole = rows_of(data, size, columns, part=h)
            b.emit("activation_reduce", sums, whole, rows_of(low, size, 1, part=h), op="exp")
        for h, size in halves:
            of_row = rows_of(inverse, size, 1, part=h)
            b.emit("reciprocal", of_row, rows_of(total, size, 1, part=h))
            scaled = rows_of(result, size, columns, part=h)
            whole = rows_of(power, size, columns, part=h)
            b.emit("tensor_scalar", scaled, whole, of_row, op0="multiply")
            b.store(rows_of(out, size, columns, (r0 + h * P) * columns), scaled)
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
    data = b.sbuf("data", columns, dtype, slots=2, parts=2)
    gain = b.sbuf("gain", columns, dtype)
    square = b.sbuf("square", columns, "float32", parts=2)
    result = b.sbuf("result", columns, dtype, slots=2, parts=2)
    stats = b.sbuf("stats", 2, "float32", slots=2, parts=2)
    every_row = Access(buffer=weight, pattern=((0, P), (1, columns)))
    b.load(rows_of(gain, P, columns), every_row)
    for r0, pair in b.tiles(rows, 2 * P):
        b.fresh(data, square, result, stats)
        halves = [(h, min(P, pair - h * P)) for h in range(ceil(pair / P))]
        for h, size in halves:
            whole = rows_of(data, size, columns, part=h)
            b.load(whole, rows_of(source, size, columns, (r0 + h * P) * columns))
            sums = (rows_of(square, size, columns, part=h), rows_of(stats, size, 1, part=h))
            b.emit("activation_reduce", sums, whole, op="square")
        for h, size in halves:
            total, scale = (rows_of(stats, size, 1, k, part=h) for k in (0, 1))
            mean = {"op0": "multiply", "imm0": 1.0 / columns, "op1": "add", "imm1": eps}
            b.emit("tensor_scalar", total, total, **mean)  # type: ignore[arg-type]
            b.emit("activation", scale, total, op="rsqrt")
        for h, size in halves:
            scaled = rows_of(result, size, columns, part=h)
            b.emit(
                "scalar_tensor_tensor",
                scaled,
                rows_of(data, size, columns, part=h),
                rows_of(stats, size, 1, 1, part=h),
                rows_of(gain, size, columns),
                op0="multiply",
                op1="multiply",
            )
            b.store(rows_of(out, size, columns, (r0 + h * P) * columns), scaled)
    return b.build()


def layer_norm(
    rows: int,
    columns: int,
    *,
    chip: Chip,
    dtype: str = "bfloat16",
    eps: float = 1e-5,
    cores: int = 1,
) -> Program:
    """out[r, :] = (in[r, :] - mean) / sqrt(variance + eps) * weight + bias, in float32."""
    rows = ceil(rows / cores)
    b = Builder(f"layer_norm {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (rows, columns), dtype, Role.OUTPUT)
    affine = {}
    for name in ("weight", "bias"):
        parameter = b.hbm(name, (1, columns), dtype, Role.WEIGHT)
        affine[name] = b.sbuf(f"{name} rows", columns, dtype)
        every_row = Access(buffer=parameter, pattern=((0, P), (1, columns)))
        b.load(rows_of(affine[name], P, columns), every_row)
    chunks = ceil(columns / BN_STATS)
    data = b.sbuf("data", columns, dtype, slots=2, parts=2)
    centred = b.sbuf("centred", columns, "float32", parts=2)
    result = b.sbuf("result", columns, dtype, slots=2, parts=2)
    stats = b.sbuf("stats", 6 * chunks, "float32", slots=2, parts=2)
    mean = b.sbuf("mean and scale", 2, "float32", slots=2, parts=2)
    for r0, pair in b.tiles(rows, 2 * P):
        b.fresh(data, centred, result, stats, mean)
        halves = [(h, min(P, pair - h * P)) for h in range(ceil(pair / P))]
        for h, size in halves:
            whole = rows_of(data, size, columns, part=h)
            b.load(whole, rows_of(source, size, columns, (r0 + h * P) * columns))
            for c in range(chunks):
                count = min(BN_STATS, columns - c * BN_STATS)
                piece = rows_of(data, size, count, c * BN_STATS, part=h)
                b.emit("bn_stats", rows_of(stats, size, 6, 6 * c, part=h), piece)
            both = rows_of(mean, size, 2, part=h)
            b.emit("bn_aggr", both, rows_of(stats, size, 6 * chunks, part=h))
            scale = rows_of(mean, size, 1, 1, part=h)
            b.emit("tensor_scalar", scale, scale, op0="add", imm0=eps)
            b.emit("activation", scale, scale, op="rsqrt")
        for h, size in halves:
            whole, wide = (rows_of(t, size, columns, part=h) for t in (data, centred))
            centre, scale = (rows_of(mean, size, 1, k, part=h) for k in (0, 1))
            b.emit("tensor_scalar", wide, whole, centre, scale, op0="subtract", op1="multiply")
            weight, bias = (rows_of(affine[n], size, columns) for n in ("weight", "bias"))
            b.emit("tensor_tensor", wide, wide, weight, op="multiply")
            done = rows_of(result, size, columns, part=h)
            b.emit("tensor_tensor", done, wide, bias, op="add")
            b.store(rows_of(out, size, columns, (r0 + h * P) * columns), done)
    return b.build()
