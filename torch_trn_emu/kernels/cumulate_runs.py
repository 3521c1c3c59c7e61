"""Running sums down the rows of [outer, rows, columns]: a partition has a run of consecutive rows.

It sums up its own run; products with triangles of ones add what the partitions before it and the
tiles before its own end with. Few columns are one transfer.
"""

from collections.abc import Iterator
from math import ceil

from ..isa import Access, Affine, Buffer, Builder, Engine, Program, Role
from .limits import BANK, START, P, evenly
from .reduce_leading import share_of
from .triangle import triangle

__all__ = ["cumulate_runs"]

TOGETHER = 2048  # elements of a partition (chosen)
NARROW = 16  # columns up to which an instruction scans one of them (chosen)


def cumulate_runs(
    outer: int, rows: int, columns: int, *, dtype: str = "float32", out_dtype: str = "",
    cores: int = 1,
) -> Program:  # fmt: skip
    """out[o, r, c] = the sum of in[o, : r + 1, c]; cores share the outer dimension or columns."""
    outer, columns = share_of(outer, columns, cores)
    b = Builder(f"cumulate runs {outer}x{rows}x{columns}", cores=cores)
    return _Runs(b, outer, rows, columns, dtype, out_dtype or dtype).build()


class _Runs:
    def __init__(
        self, b: Builder, outer: int, rows: int, columns: int, dtype: str, out_dtype: str
    ) -> None:
        self.b, self.outer, self.rows, self.columns = b, outer, rows, columns
        self.wide = evenly(columns, BANK)  # a bank holds what comes before a partition
        self.run = max(1, min(TOGETHER // self.wide, ceil(rows / P)))  # rows of a partition
        size = self.run * self.wide
        self.source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
        self.out = b.hbm("out", (outer * rows, columns), out_dtype, Role.OUTPUT)
        self.data = b.sbuf("data", size, dtype, slots=3)
        self.sums = b.sbuf("sums", size, "float32", slots=2)
        self.result = b.sbuf("result", size, out_dtype, slots=3)
        self.carry = b.sbuf("carry", self.wide, "float32", slots=2)
        self.psum, self.total = (b.psum(n, BANK, slots=2) for n in ("before", "total"))
        self.ones, self.before = triangle(b, inclusive=False)
        if columns <= NARROW:
            self.unit = b.sbuf("unit", self.run, "float32")
            b.emit("memset", self.unit.rows(P, self.run), value=1.0)

    def build(self) -> Program:
        b = self.b
        with b.loop(self.outer) as o:
            for c0, count in b.tiles(self.columns, self.wide):
                b.fresh(self.carry)
                b.emit("memset", self.carry.rows(1, count), value=0.0)
                for r0, some in b.tiles(self.rows, P * self.run):
                    at = (o * self.rows + r0) * self.columns + c0
                    self._tile(at, some, count)
        return b.build()

    def _tile(self, at: Affine, some: int, count: int) -> None:
        """`some` rows, as many on each partition but the last."""
        b, run = self.b, ceil(some / P)
        full, rest = divmod(some, run)
        b.fresh(self.data, self.sums, self.result, self.psum, self.total)
        parts = full + (rest > 0)
        if rest:
            first = full // START * START
            zeros = self.data.rows(parts - first, run * count, first * self.data.row_elements)
            b.emit("memset", zeros, engine=Engine.GPSIMD, value=0.0)
        for here, there in self._moves(self.data, self.source, at, (full, rest, run), count):
            b.load(here, there)
        self._between(self._within(parts, run, count), full, parts, run, count)
        for here, there in self._moves(self.result, self.out, at, (full, rest, run), count):
            b.store(there, here)

    def _moves(
        self, buffer: Buffer, hbm: Buffer, at: Affine, rows: tuple[int, int, int], count: int
    ) -> Iterator[tuple[Access, Access]]:
        """Transfers of the partitions that are full, and of the last if it is not."""
        full, rest, run = rows
        columns, pitch = self.columns, buffer.row_elements
        for parts, of, part in ((full, run, 0), (1, rest, full)):
            if not parts * of:
                continue
            inner = ((1, of * count),) if count == columns else ((columns, of), (1, count))
            there = hbm.box((run * columns, parts), *inner, at=at + part * run * columns)
            inner = ((1, of * count),) if count == columns else ((count, of), (1, count))
            yield buffer.box((pitch, parts), *inner, at=part * pitch), there

    def _within(self, parts: int, run: int, count: int) -> Buffer:
        """Sums of each partition's rows."""
        b = self.b
        if run == 1 and self.data.dtype == self.sums.dtype:
            return self.data
        if self.columns <= NARROW:
            unit = self.unit.rows(parts, run)
            with b.loop(count) as c:
                sums, data = (
                    t.box((t.row_elements, parts), (count, run), at=c)
                    for t in (self.sums, self.data)
                )
                b.emit("tensor_tensor_scan", sums, unit, data, op0="multiply", op1="add")
            return self.sums
        b.emit("tensor_copy", *(t.rows(parts, count) for t in (self.sums, self.data)))
        if run > 1:
            with b.loop(run - 1) as r:
                sums, before = (self.sums.rows(parts, count, k * count) for k in (r + 1, r))
                data = self.data.rows(parts, count, (r + 1) * count)
                b.emit("tensor_tensor", sums, before, data, op="add")
        return self.sums

    def _between(self, within: Buffer, full: int, parts: int, run: int, count: int) -> None:
        """What the partitions before end with, and the tiles before.

        A partition that is not full is the last of all: nothing goes on from it.
        """
        b = self.b
        kept, total = self.carry.rows(1, count), self.total.rows(1, count)
        before = self.psum.rows(parts, count)
        last = within.rows(full, count, (run - 1) * count)
        products = [(self.ones.rows(1, parts), kept)]
        if full:
            products.append((self.before.rows(full, parts), last))
        # What is there already comes first, before a carry that is still made.
        for product in products if within is self.sums else reversed(products):
            b.emit("nc_matmul", before, *product)
        if full:
            b.emit("nc_matmul", total, self.ones.rows(full, 1), last)
            b.emit("tensor_tensor", kept, total, kept, op="add")
        sums, result = (
            t.box((t.row_elements, parts), (count, run), (1, count)) for t in (within, self.result)
        )
        every = self.psum.box((self.psum.row_elements, parts), (0, run), (1, count))
        b.emit("tensor_tensor", result, every, sums, op="add")
