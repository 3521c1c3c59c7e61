"""Reductions over the last dimension, or over everything, as engine programs.

Rows lie on partitions and are reduced by the Vector engine; a sum over everything reduces the
partial sums of the partitions with a matmul by ones, as compilers do.
"""

from math import ceil

from ..chip import Chip
from ..isa import Access, Attribute, Builder, Program, Role, itemsize, rows_of
from .limits import P

__all__ = ["Work", "apply", "reduce_rows"]

Work = tuple[tuple[str, tuple[tuple[str, Attribute], ...]], ...]  # opcodes and attributes

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
    before: Work = (),
    after: Work = (),
) -> Program:
    """out[r] = after(reduction of before(in[r, :]) by `op`); rows are split over the cores."""
    rows = ceil(rows / cores)
    b = Builder(f"reduce_{op} {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (rows, 1), out_dtype, Role.OUTPUT)
    width = min(columns, int(TILE_BYTES / (4 if before else itemsize(dtype))))
    chunks = ceil(columns / width)
    data = b.sbuf("data", width, dtype, slots=3)
    made = b.sbuf("made", width, "float32", slots=2) if before else data
    partial = b.sbuf("partial", chunks, "float32", slots=2)
    result = b.sbuf("result", 1, out_dtype, slots=2)

    for r0, size in b.tiles(rows, P):
        b.fresh(partial, result)
        for c, c0, count in b.parts(columns, width):
            b.fresh(data)
            b.load(rows_of(data, size, count), rows_of(source, size, count, r0 * columns + c0))
            if before:
                b.fresh(made)
                apply(b, before, rows_of(made, size, count), rows_of(data, size, count))
            b.emit("tensor_reduce", rows_of(partial, size, 1, c), rows_of(made, size, count), op=op)
        whole, one = rows_of(partial, size, chunks), rows_of(partial, size, 1)
        to = one if after else rows_of(result, size, 1)
        b.emit("tensor_reduce", to, whole, op=op)
        apply(b, after, rows_of(result, size, 1), one)
        b.store(rows_of(out, size, 1, r0), rows_of(result, size, 1))
    return b.build()


def apply(b: Builder, work: Work, to: Access, source: Access) -> None:
    """Instructions of one operand, one after the other: the first reads `source`, the last writes
    `to`, and those between stay in `to`, or in `source` if `to` holds less than float32.
    """
    for k, (opcode, attributes) in enumerate(work):
        last = k == len(work) - 1
        place = to if last or to.buffer.dtype == "float32" else source
        b.emit(opcode, place, source, **dict(attributes))  # type: ignore[arg-type]
        source = place
