"""Reductions over a leading dimension.

A sum over rows is a product with ones on the Tensor engine; other reductions combine tiles on the
Vector engine and the partitions on GpSimd.
"""

from collections.abc import Iterator
from math import ceil, inf

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role, rows_of
from .limits import BANK, P
from .reduction import Work, apply

__all__ = ["NEUTRAL", "reduce_columns", "share_of"]


def share_of(outer: int, columns: int, cores: int) -> tuple[int, int]:
    """One core's part of [outer, rows, columns]: whole columns."""
    if outer >= cores:
        return ceil(outer / cores), columns
    return outer, ceil(columns / cores)


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
    outer, columns = share_of(outer, columns, cores)
    b = Builder(f"reduce_{op} {outer}x{rows}x{columns}", cores=cores)
    wide = min(columns, 4 * BANK)
    compute = "float32" if before else dtype
    compute = compute if compute in chip.tensor_engine.macs_per_pe_cycle else "float32"
    source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (outer, columns), out_dtype, Role.OUTPUT)
    tiles = _Tiles(b, source, rows, wide, compute, before)
    result = b.sbuf("result", wide, out_dtype, slots=2)
    reduced = b.sbuf("reduced", wide, "float32", slots=2) if after else result
    if op == "add":
        b.emit("memset", rows_of(tiles.ones, P, 1), value=1.0)
    with b.loop(outer) as o:
        for c0, count in b.tiles(columns, wide):
            b.fresh(*{result, reduced})
            if op == "add":
                tiles.add(reduced, o, c0, count)
            else:
                tiles.combine(op, reduced, o, c0, count)
            if after:
                apply(b, after, rows_of(result, 1, count), rows_of(reduced, 1, count))
            b.store(rows_of(out, 1, count, o * columns + c0), rows_of(result, 1, count))
    return b.build()


class _Tiles:
    """Rows on partitions, tile after tile, worked into one row."""

    def __init__(
        self, b: Builder, source: Buffer, rows: int, wide: int, compute: str, before: Work
    ) -> None:
        self.b, self.source, self.rows, self.before = b, source, rows, before
        self.data = b.sbuf("data", wide, compute, slots=3)
        self.ones, self.total = b.sbuf("ones", 1, compute), b.psum("total", BANK, slots=4)
        self.best = b.sbuf("best", wide, "float32", slots=2)

    def bring(self, o: Affine, c0: Affine, count: int) -> Iterator[tuple[Access, int]]:
        """(a tile with what is done to it first, its rows)."""
        b, columns = self.b, self.source.shape[1]
        for r0, some in b.tiles(self.rows, P):
            b.fresh(self.data)
            tile, at = rows_of(self.data, some, count), (o * self.rows + r0) * columns + c0
            b.load(tile, rows_of(self.source, some, count, at))
            apply(b, self.before, tile, tile)
            yield tile, some

    def add(self, to: Buffer, o: Affine, c0: Affine, count: int) -> None:
        """Sums by products with ones, a PSUM bank of columns at a time."""
        for start in range(0, count, BANK):
            size = min(BANK, count - start)
            self.b.fresh(self.total)
            total = rows_of(self.total, 1, size)
            for tile, some in self.bring(o, c0 + start, size):
                self.b.emit("nc_matmul", total, rows_of(self.ones, some, 1), tile)
            self.b.emit("tensor_copy", rows_of(to, 1, size, start), total)

    def combine(self, op: str, to: Buffer, o: Affine, c0: Affine, count: int) -> None:
        """Tile by tile on the Vector engine, then the partitions on GpSimd."""
        b, best = self.b, rows_of(self.best, P, count)
        b.fresh(self.best)
        b.emit("memset", best, value=NEUTRAL[op])
        for tile, some in self.bring(o, c0, count):
            kept = rows_of(self.best, some, count)
            b.emit("tensor_tensor", kept, kept, tile, op=op)
        b.emit("tensor_partition_reduce", rows_of(to, 1, count), best, op=op)


NEUTRAL = {
    "add": 0.0,
    "max": -inf,
    "min": inf,
    "multiply": 1.0,
    "logical_and": 1.0,
    "logical_or": 0.0,
    "abs_max": 0.0,
    "abs_min": inf,
}
