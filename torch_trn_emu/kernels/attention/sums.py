"""The logarithms of the sums of attention: sums are kept, and their logarithms taken together.

The Scalar engine loads another table for the logarithm, so it is not taken between exponentials.
"""

from math import ceil

from ...isa import Access, Affine, Buffer, Builder, Engine, Index, Role, affine
from ..limits import P
from .spec import AttentionSpec, grids

__all__ = ["MOST_SUMS", "Sums"]

MOST_SUMS = 8192  # heads x tiles whose sums a partition keeps until the end (chosen: 64 KiB)


class Sums:
    """Of `heads` heads, the sums of the weights of each query and what the exponentials added."""

    def __init__(self, b: Builder, a: AttentionSpec, heads: int, psum: Buffer) -> None:
        self.b, self.a, self.psum, self.tiles = b, a, psum, ceil(a.queries / P)
        self.lse = b.hbm("lse", (a.batch * a.heads * a.queries, 1), "float32", Role.OUTPUT)
        kept = heads * self.tiles
        self.totals, self.shifts = (b.sbuf(n, kept, "float32") for n in ("totals", "shifts"))
        self.transposed = b.sbuf("sums transposed", P, "float32", slots=2)

    def keep(self, head: Index, tile: Index, heads: int, sums: Access, shifts: Access) -> None:
        """Those of a tile of queries of `heads` heads, the first of which is number `head`."""
        at = affine(head) * self.tiles + tile
        for buffer, source in ((self.totals, sums), (self.shifts, shifts)):
            pattern = ((buffer.row_elements, source.pattern[0][1]), (self.tiles, heads))
            kept = buffer.box(*pattern, at=at)
            self.b.emit("tensor_copy", kept, source, engine=Engine.GPSIMD)

    def store(self, first: Affine, heads: int) -> None:
        """log(sum) - shift, transposed: a head's rows lie one after the other in HBM."""
        b = self.b
        for grid in grids(self.a.queries):
            shape = ((self.tiles, heads), (1, grid.tiles))
            totals, shifts = (
                x.lanes(grid.rows, *shape, at=grid.first) for x in (self.totals, self.shifts)
            )
            b.emit("activation", totals, totals, op="log")
            b.emit("tensor_tensor", totals, totals, shifts, op="subtract")
            for t in range(grid.first, grid.first + grid.tiles):
                for start, count in b.tiles(heads, P):
                    self._store(t, grid.rows, first, start, count)

    def _store(self, tile: int, rows: int, first: Affine, start: Affine, count: int) -> None:
        b, row = self.b, self.totals.row_elements
        b.fresh(self.psum, self.transposed)
        source = self.totals.box((row, rows), (self.tiles, count), at=start * self.tiles + tile)
        transposed = self.psum.rows(count, rows)
        b.emit("nc_transpose", transposed, source)
        kept = self.transposed.rows(count, rows)
        b.emit("tensor_copy", kept, transposed)
        at = (first + start) * self.a.queries + tile * P
        b.store(self.lse.box((self.a.queries, count), (1, rows), at=at), kept)
