"""Reductions over few rows of many columns: a partition has a run of columns, with all its rows.

Rows on partitions would leave most partitions empty, and take one to combine what they hold.
"""

from collections.abc import Iterator
from math import ceil, inf

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role, rows_of
from .limits import BANK, P
from .reduce_leading import share_of
from .reduce_rows import Work, apply
from .rows.values import NEUTRAL
from .variance import finished

__all__ = ["moments_spread", "reduce_spread", "spreads"]

TOGETHER = 4096  # elements of a partition that are reduced at once (chosen)
HELD = 8192  # elements of a partition that stay until their variances are known (chosen)


def spreads(outer: int, rows: int, columns: int, cores: int) -> bool:
    """Whether every partition of a core can have a run of columns, and all of their rows."""
    _, columns = share_of(outer, columns, cores)
    return rows > 1 and columns >= P and rows <= HELD


def _run(columns: int, longest: int) -> int:
    """Columns of a partition, so that all partitions of as few tiles as possible have as many."""
    tiles = ceil(columns / (P * longest))
    return ceil(columns / (P * tiles))


class _Runs:
    """Runs of columns of [outer, rows, columns] on partitions, and those that are left on one."""

    def __init__(self, columns: int, run: int) -> None:
        self.columns, self.run = columns, run

    def tiles(self, b: Builder) -> Iterator[tuple[Affine | int, int, int]]:
        """The first column, the partitions, and the columns of each."""
        whole, left = divmod(self.columns, self.run)
        for first, parts in b.tiles(whole, P):
            yield first * self.run, parts, self.run
        if left:
            yield whole * self.run, 1, left


def _box(tile: Buffer, parts: int, rows: int, run: int, *, by_column: bool = False) -> Access:
    """[parts, rows, run] of a tile, or its transpose in which a column's rows come together."""
    inner = ((1, run), (run, rows)) if by_column else ((run, rows), (1, run))
    return Access(buffer=tile, pattern=((tile.row_elements, parts), *inner))


def reduce_spread(
    outer: int, rows: int, columns: int, *, op: str, chip: Chip, dtype: str = "float32",
    out_dtype: str = "float32", cores: int = 1, before: Work = (), after: Work = (),
) -> Program:  # fmt: skip
    """out[o, c] = after(reduction by `op` of before(in[o, :, c])), as `reduce_columns`."""
    outer, columns = share_of(outer, columns, cores)
    b = Builder(f"reduce_{op} {outer}x{rows}x{columns}", cores=cores)
    run = _run(columns, BANK)
    together = max(1, min(rows, TOGETHER // run))
    source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (outer, columns), out_dtype, Role.OUTPUT)
    held = "float32" if before or dtype not in chip.tensor_engine.macs_per_pe_cycle else dtype
    data = b.sbuf("data", together * run, held, slots=3)
    best, folded = (b.sbuf(n, run, "float32", slots=2) for n in ("best", "folded"))
    result = b.sbuf("result", run, out_dtype, slots=2)
    with b.loop(outer) as o:
        for c0, parts, wide in _Runs(columns, run).tiles(b):
            b.fresh(best, result)
            kept = rows_of(best, parts, wide)
            b.emit("memset", kept, value=NEUTRAL[op])
            for r0, some in b.tiles(rows, together):
                b.fresh(data, folded)
                at = (o * rows + r0) * columns + c0
                there = Access(
                    buffer=source, offset=at, pattern=((wide, parts), (columns, some), (1, wide))
                )
                tile, part = _box(data, parts, some, wide), rows_of(folded, parts, wide)
                b.load(tile, there)
                apply(b, before, tile, tile)
                if some > 1:
                    turned = _box(data, parts, some, wide, by_column=True)
                    b.emit("tensor_reduce", part, turned, op=op)
                b.emit("tensor_tensor", kept, kept, part if some > 1 else tile, op=op)
            made = rows_of(result, parts, wide)
            if after:
                apply(b, after, made, kept)
            else:
                b.emit("tensor_copy", made, kept)
            to = Access(buffer=out, offset=o * columns + c0, pattern=((wide, parts), (1, wide)))
            b.store(to, made)
    return b.build()


def moments_spread(
    outer: int, rows: int, columns: int, *, less: float, root: bool, chip: Chip,
    dtype: str = "float32", cores: int = 1,
) -> Program:  # fmt: skip
    """Variances and means over the rows of [outer, rows, columns], as `moments_of_columns`."""
    outer, columns = share_of(outer, columns, cores)
    b = Builder(f"moments {outer}x{rows}x{columns}", cores=cores)
    run = _run(columns, min(BANK, HELD // rows))
    factor = 1 / (rows - less) if rows > less else inf
    source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
    stored = {n: b.hbm(n, (outer, columns), dtype, Role.OUTPUT) for n in ("var", "mean")}
    data = b.sbuf("data", rows * run, dtype, slots=2)
    work = b.sbuf("work", rows * run, "float32", slots=2)
    mean, squares = (b.sbuf(n, run, "float32", slots=2) for n in ("mean", "squares"))
    done = b.sbuf("done", run, dtype, slots=4)
    with b.loop(outer) as o:
        for c0, parts, wide in _Runs(columns, run).tiles(b):
            b.fresh(data, work, mean, squares)
            there = Access(
                buffer=source, offset=o * rows * columns + c0,
                pattern=((wide, parts), (columns, rows), (1, wide)),
            )  # fmt: skip
            tile, x = (_box(t, parts, rows, wide) for t in (data, work))
            centre, spread = rows_of(mean, parts, wide), rows_of(squares, parts, wide)
            b.load(tile, there)
            b.emit("tensor_reduce", centre, _box(data, parts, rows, wide, by_column=True), op="add")
            b.emit("tensor_scalar", centre, centre, op0="multiply", imm0=1.0 / rows)
            every = ((mean.row_elements, parts), (0, rows), (1, wide))
            b.emit("tensor_tensor", x, tile, Access(buffer=mean, pattern=every), op="subtract")
            b.emit("activation", x, x, op="square")
            b.emit("tensor_reduce", spread, _box(work, parts, rows, wide, by_column=True), op="add")
            for name, value in (("var", spread), ("mean", centre)):
                b.fresh(done)
                to = rows_of(done, parts, wide)
                if name == "var":
                    finished(b, to, value, factor, root)
                else:
                    b.emit("tensor_copy", to, value)
                place = ((wide, parts), (1, wide))
                b.store(Access(buffer=stored[name], offset=o * columns + c0, pattern=place), to)
    return b.build()
