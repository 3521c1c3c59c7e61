"""Reductions over the last dimension, or over everything, as engine programs.

Rows lie on partitions and are reduced by the Vector engine; a sum over everything reduces the
partial sums of the partitions with a matmul by ones, as compilers do.
"""

from math import ceil

from ..chip import Chip
from ..isa import Builder, Program, Role, itemsize, rows_of

__all__ = ["reduce_rows"]

P = 128
TILE_BYTES = 32 * 1024


def reduce_rows(
    rows: int,
    columns: int,
    *,
    op: str,
    chip: Chip,
    dtype: str = "float32",
    out_dtype: str = "float32",
    cores: int = 1,
) -> Program:
    """out[r] = reduction of in[r, :] by `op`; rows are split over the cores."""
    rows = ceil(rows / cores)
    b = Builder(f"reduce_{op} {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (rows, 1), out_dtype, Role.OUTPUT)
    width = min(columns, int(TILE_BYTES / itemsize(dtype)))
    chunks = ceil(columns / width)
    data = b.sbuf("data", width, dtype, slots=3)
    partial = b.sbuf("partial", chunks, "float32", slots=2)
    result = b.sbuf("result", 1, out_dtype, slots=2)

    for r0, size in b.tiles(rows, P):
        b.fresh(partial, result)
        for c, c0, count in b.parts(columns, width):
            b.fresh(data)
            b.load(rows_of(data, size, count), rows_of(source, size, count, r0 * columns + c0))
            b.emit("tensor_reduce", rows_of(partial, size, 1, c), rows_of(data, size, count), op=op)
        b.emit("tensor_reduce", rows_of(result, size, 1), rows_of(partial, size, chunks), op=op)
        b.store(rows_of(out, size, 1, r0), rows_of(result, size, 1))
    return b.build()
