"""Reductions over a leading dimension.

A sum over rows is a product with ones on the Tensor engine; other reductions combine tiles on the
Vector engine and the partitions on GpSimd.
"""

from math import ceil

from ..chip import Chip
from ..isa import Builder, Program, Role, rows_of
from .reduction import Work, apply

__all__ = ["NEUTRAL", "reduce_columns"]

P = 128
BANK = 512


def reduce_columns(
    outer: int,
    rows: int,
    columns: int,
    *,
    op: str,
    chip: Chip,
    dtype: str = "float32",
    out_dtype: str = "float32",
    cores: int = 1,
    before: Work = (),
    after: Work = (),
) -> Program:
    """out[o, c] = reduction of in[o, :, c]; the columns, or the outer dimension, are split.

    before, after  what is done to the elements first and to the result last
    """
    if outer >= cores:
        outer = ceil(outer / cores)
    else:
        columns = ceil(columns / cores)
    b = Builder(f"reduce_{op} {outer}x{rows}x{columns}", cores=cores)
    source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (outer, columns), out_dtype, Role.OUTPUT)
    wide = min(columns, 4 * BANK)
    compute = "float32" if before else dtype
    compute = compute if compute in chip.tensor_engine.macs_per_pe_cycle else "float32"
    data = b.sbuf("data", wide, compute, slots=3)
    summed = b.sbuf("reduced", wide, "float32", slots=2) if after else None
    result = b.sbuf("result", wide, out_dtype, slots=2)
    ones = b.sbuf("ones", 1, compute)
    total = b.psum("total", BANK, slots=4)
    best = b.sbuf("best", wide, "float32", slots=2)
    if op == "add":
        b.emit("memset", rows_of(ones, P, 1), value=1.0)
    with b.loop(outer) as o:
        for c0, count in b.tiles(columns, wide):
            b.fresh(result, total, *([summed] if summed else []))
            if op != "add":
                b.fresh(best)
                b.emit("memset", rows_of(best, P, count), value=NEUTRAL[op])
            elif ceil(count / BANK) > 1:
                b.fresh(*[total] * (ceil(count / BANK) - 1))
            if op == "add":
                for start in range(0, count, BANK):
                    size = min(BANK, count - start)
                    b.fresh(total)
                    for r0, some in b.tiles(rows, P):
                        b.fresh(data)
                        at = (o * rows + r0) * columns + c0 + start
                        b.load(rows_of(data, some, size), rows_of(source, some, size, at))
                        apply(b, before, rows_of(data, some, size), rows_of(data, some, size))
                        one = rows_of(ones, some, 1)
                        b.emit("nc_matmul", rows_of(total, 1, size), one, rows_of(data, some, size))
                    to = rows_of(summed or result, 1, size, start)
                    b.emit("tensor_copy", to, rows_of(total, 1, size))
            else:
                for r0, some in b.tiles(rows, P):
                    b.fresh(data)
                    at = (o * rows + r0) * columns + c0
                    b.load(rows_of(data, some, count), rows_of(source, some, count, at))
                    apply(b, before, rows_of(data, some, count), rows_of(data, some, count))
                    kept = rows_of(best, some, count)
                    b.emit("tensor_tensor", kept, kept, rows_of(data, some, count), op=op)
                b.emit(
                    "tensor_partition_reduce",
                    rows_of(summed or result, 1, count),
                    rows_of(best, P, count),
                    op=op,
                )
            if summed:
                apply(b, after, rows_of(result, 1, count), rows_of(summed, 1, count))
            b.store(rows_of(out, 1, count, o * columns + c0), rows_of(result, 1, count))
    return b.build()


NEUTRAL = {
    "add": 0.0,
    "max": -3.0e38,
    "min": 3.0e38,
    "multiply": 1.0,
    "logical_and": 1.0,
    "logical_or": 0.0,
    "abs_max": 0.0,
    "abs_min": 3.0e38,
}
