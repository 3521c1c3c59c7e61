"""RMS normalization, one row a partition, without the optimizations of `row_program`."""

from math import ceil

from torch_trn_emu.chip import Chip
from torch_trn_emu.isa import Builder, Program, Role
from torch_trn_emu.kernels.limits import P

__all__ = ["rms_norm"]


def rms_norm(
    rows: int,
    columns: int,
    *,
    chip: Chip,
    dtype: str = "bfloat16",
    eps: float = 1e-6,
    cores: int = 1,
) -> Program:
    """out[r, :] = in[r, :] * weight / sqrt(mean(in[r, :]^2) + eps).

    Two tiles of rows go together, so that the engines take turns instead of waiting.
    """
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
    every_row = weight.box((0, P), (1, columns))
    b.load(gain.rows(P, columns), every_row)
    for r0, pair in b.tiles(rows, 2 * P):
        b.fresh(data, square, result, stats)
        halves = [(h, min(P, pair - h * P)) for h in range(ceil(pair / P))]
        for h, size in halves:
            whole = data.rows(size, columns, part=h)
            b.load(whole, source.rows(size, columns, (r0 + h * P) * columns))
            sums = (square.rows(size, columns, part=h), stats.rows(size, 1, part=h))
            b.emit("activation_reduce", sums, whole, op="square")
        for h, size in halves:
            total, scale = (stats.rows(size, 1, k, part=h) for k in (0, 1))
            mean = {"op0": "multiply", "imm0": 1.0 / columns, "op1": "add", "imm1": eps}
            b.emit("tensor_scalar", total, total, **mean)  # type: ignore[arg-type]
            b.emit("activation", scale, total, op="rsqrt")
        for h, size in halves:
            scaled = result.rows(size, columns, part=h)
            b.emit(
                "scalar_tensor_tensor",
                scaled,
                data.rows(size, columns, part=h),
                stats.rows(size, 1, 1, part=h),
                gain.rows(size, columns),
                op0="multiply",
                op1="multiply",
            )
            b.store(out.rows(size, columns, (r0 + h * P) * columns), scaled)
    return b.build()
