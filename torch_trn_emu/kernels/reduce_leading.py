"""Reductions over a leading dimension.

Rows lie on partitions, several short ones beside each other. A sum of 16-bit rows is a product with
ones on the Tensor engine. Other reductions, and sums of what that engine multiplies at a fraction
of its rate, are combined tile by tile on the Vector engine, and the partitions at the end.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

from ..calls import Target, TensorArg
from ..calls.labels import labelled
from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from .limits import BANK, P, evenly
from .reduce_rows import Work, apply
from .rows.values import NEUTRAL

__all__ = [
    "LINE",
    "beside",
    "columns_outer",
    "columns_reduced",
    "lines_of",
    "reduce_columns",
    "share_of",
]

WIDE = 4 * BANK  # columns that are worked on at a time (chosen)
LINE = 2 * BANK  # elements of short rows beside each other: 4 KiB have DMA's full rate (chosen)


def share_of(outer: int, columns: int, cores: int) -> tuple[int, int]:
    """One core's part of [outer, rows, columns]: whole columns."""
    if outer >= cores:
        return ceil(outer / cores), columns
    return outer, ceil(columns / cores)


def beside(outer: int, rows: int, columns: int, cores: int, line: int = LINE) -> int:
    """How many rows make a line of at most `line`: few tiles of lines, and no rows left over if
    that takes no more of them.

    Lines are on one core, so they must be worth it where the outer dimension does not split.
    """
    most = line // columns
    if most < 2 or rows <= P:
        return 1
    tiles = ceil(rows / (P * most))
    least = ceil(rows / (P * tiles))
    even = (n for n in range(least, min(most, rows) + 1) if rows % n == 0)
    count = next(even, min(least, most))
    return count if outer >= cores or count >= cores else 1


def lines_of(
    b: Builder,
    source: Buffer,
    rows: tuple[int, int],
    at: Affine,
    count: int,
    *,
    rest: bool = True,
) -> Iterator[tuple[Access, int, int, int]]:
    """Tiles of lines of a matrix in memory, and of the rows that make none, if not left out.

    rows   how many, and how many of them make a line
    at     the first element, and `count` those of each line

    Gives what lies there, its lines, elements and rows of a line.
    """
    columns, (total, together) = source.shape[1], rows
    lines, left = divmod(total, together)
    after = at + lines * together * columns
    parts = [(at, lines, together, count), (after, left, 1, columns)]
    for first, number, of, size in parts if left and rest else parts[:1]:
        pitch = of * columns
        for r0, some in b.tiles(number, P):
            pattern = ((pitch, some), (1, size))
            yield source.box(*pattern, at=first + r0 * pitch), some, size, of


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
    """out[o, c] = reduction of in[o, :, c]; the outer dimension, or else the columns, are split.

    One core takes all where short rows lie beside each other and the outer dimension is too short.

    before, after  what is done to the elements first and to the result last
    """
    together = beside(outer, rows, columns, cores)
    if outer < cores and together > 1:
        cores = 1
    outer, columns = share_of(outer, columns, cores)
    b = Builder(f"reduce_{op} {outer}x{rows}x{columns}", cores=cores)
    wide = evenly(columns, WIDE)
    rates = chip.tensor_engine.macs_per_pe_cycle
    compute = "float32" if before or dtype not in rates else dtype
    source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (outer, columns), out_dtype, Role.OUTPUT)
    multiplies = op == "add" and (rates[compute] >= 1 or rows <= P)
    tiles = _Tiles(b, source, (rows, together), compute, before, op, multiplies=multiplies)
    result = b.sbuf("result", wide, out_dtype, slots=2)
    reduced = b.sbuf("reduced", wide, "float32", slots=2) if after else result
    with b.loop(outer) as o:
        for c0, count in b.tiles(columns, wide):
            b.fresh(*{result, reduced})
            tiles.reduce(reduced, o, c0, count)
            if after:
                apply(b, after, result.rows(1, count), reduced.rows(1, count))
            b.store(out.rows(1, count, o * columns + c0), result.rows(1, count))
    return b.build()


def columns_reduced(
    x: TensorArg, out: TensorArg, outer: int, rows: int, columns: int, target: Target,
    **options: Any,
) -> Program:  # fmt: skip
    """`reduce_columns` of a tensor seen as [outer, rows, columns]."""
    program = reduce_columns(
        outer, rows, columns, dtype=x.dtype, out_dtype=out.dtype, chip=target.chip,
        cores=target.cores, **options,
    )  # fmt: skip
    return labelled(program, {"in": x, "out": out}, outer=columns_outer(outer, rows, target.cores))


def columns_outer(outer: int, rows: int, cores: int) -> dict[str, int]:
    """How cores share the columns of [outer, rows, columns], where they do not share `outer`."""
    return {} if outer >= cores else {"in": outer * rows, "out": outer}


class _Tiles:
    """Lines on partitions, tile after tile, worked into one row.

    rows        how many, and how many of them make a line
    multiplies  sums are products with ones from the start
    """

    def __init__(
        self,
        b: Builder,
        source: Buffer,
        rows: tuple[int, int],
        compute: str,
        before: Work,
        op: str,
        *,
        multiplies: bool,
    ) -> None:
        self.b, self.source, self.before, self.op = b, source, before, op
        self.columns, (self.rows, self.beside) = source.shape[1], rows
        self.multiplies = multiplies
        wide = min(self.beside * self.columns, WIDE)
        self.data = b.sbuf("data", wide, compute, slots=3)
        single = min(self.columns, WIDE)
        self.best, self.folded = (b.sbuf(n, single, "float32", slots=2) for n in ("best", "folded"))
        self.line = b.sbuf("line", wide, "float32", slots=2)
        if op == "add":
            held = compute if self.multiplies else "float32"
            self.ones, self.total = b.sbuf("ones", 1, held), b.psum("total", BANK, slots=4)
            b.emit("memset", self.ones.rows(P, 1), value=1.0)

    def reduce(self, to: Buffer, o: Affine, c0: Affine, count: int) -> None:
        """The columns from c0 on."""
        b = self.b
        if not self.multiplies:
            self._combined(o, c0, count)
            if self.op == "add":
                self._summed(to, o, c0, count)
            else:
                best = self.best.rows(P, count)
                b.emit("tensor_partition_reduce", to.rows(1, count), best, op=self.op)
        elif self.beside == 1:
            self._summed(to, o, c0, count)
        else:
            b.fresh(self.line)
            self._summed(self.line, o, c0, self.beside * count)
            self._fold(to.rows(1, count), self.line, 1)

    def _fold(self, to: Access, lines: Buffer, partitions: int) -> None:
        """The rows beside each other as one."""
        count = self.columns
        pattern = ((lines.row_elements, partitions), (1, count), (count, self.beside))
        self.b.emit("tensor_reduce", to, lines.box(*pattern), op=self.op)

    def _bring(
        self, o: Affine, c0: Affine | int, count: int, *, rest: bool = True
    ) -> Iterator[tuple[Access, int, int]]:
        """Tiles of the lines' elements from c0 on, with what is done to them first."""
        b, at = self.b, o * self.rows * self.columns + c0
        rows = (self.rows, self.beside)
        for there, some, size, _ in lines_of(b, self.source, rows, at, count, rest=rest):
            b.fresh(self.data)
            tile = self.data.rows(some, size)
            b.load(tile, there)
            apply(b, self.before, tile, tile)
            yield tile, some, size

    def _combined(self, o: Affine, c0: Affine, count: int) -> None:
        """`best`: tiles combined on the Vector engine, rows beside each other first."""
        b = self.b
        b.fresh(self.best)
        b.emit("memset", self.best.rows(P, count), value=NEUTRAL[self.op])
        for tile, some, size in self._bring(o, c0, self.beside * count):
            kept = self.best.rows(some, count)
            if size > count:
                b.fresh(self.folded)
                part = self.folded.rows(some, count)
                self._fold(part, self.data, some)
                tile = part
            b.emit("tensor_tensor", kept, kept, tile, op=self.op)

    def _summed(self, to: Buffer, o: Affine, c0: Affine, wide: int) -> None:
        """Sums over partitions by products with ones, whole rows of a PSUM bank at a time."""
        b = self.b
        bank = BANK // self.columns * self.columns if self.beside > 1 else BANK
        for start in range(0, wide, bank):
            size = min(bank, wide - start)
            b.fresh(self.total)
            tiles = iter([(self.best.rows(P, size, start), P, size)])
            if self.multiplies:
                tiles = self._bring(o, c0 + start, size, rest=start == 0)
            for tile, some, count in tiles:
                total = self.total.rows(1, count)
                b.emit("nc_matmul", total, self.ones.rows(some, 1), tile)
            b.emit("tensor_copy", to.rows(1, size, start), self.total.rows(1, size))
