"""Reductions over few rows of many columns: a partition has a run of columns, with all its rows.

Rows on partitions would leave most partitions empty, and take one to combine what they hold.
"""

from math import inf

from ..chip import Chip
from ..isa import Affine, Builder, Program, Role
from .columns import Columns
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


def reduce_spread(
    outer: int, rows: int, columns: int, *, op: str, chip: Chip, dtype: str = "float32",
    out_dtype: str = "float32", cores: int = 1, before: Work = (), after: Work = (),
) -> Program:  # fmt: skip
    """out[o, c] = after(reduction by `op` of before(in[o, :, c])), as `reduce_columns`."""
    b = Builder(f"reduce_{op} {outer}x{rows}x{columns}", cores=cores)
    d = Columns(b, outer, rows, columns, together=TOGETHER)
    source, out = d.whole("in", dtype, Role.INPUT), d.single("out", out_dtype)
    held = "float32" if before or dtype not in chip.tensor_engine.macs_per_pe_cycle else dtype
    data = b.sbuf("data", d.size, held, slots=3)
    best, folded = (b.sbuf(n, d.count, "float32", slots=2) for n in ("best", "folded"))
    result = b.sbuf("result", d.count, out_dtype, slots=2)
    for tile in d.tiles():
        b.fresh(best, result)
        kept = best.rows(tile.parts, tile.wide)
        b.emit("memset", kept, value=NEUTRAL[op])
        for r0, some in d.groups():
            b.fresh(data, folded)
            x, part = d.load(data, source, tile, r0, some), folded.rows(tile.parts, tile.wide)
            apply(b, before, x, x)
            if some > 1:
                b.emit("tensor_reduce", part, d.by_column(data, tile, some), op=op)
            b.emit("tensor_tensor", kept, kept, part if some > 1 else x, op=op)
        made = result.rows(tile.parts, tile.wide)
        if after:
            apply(b, after, made, kept)
        else:
            b.emit("tensor_copy", made, kept)
        d.keep(out, result, tile)
    return b.build()


def moments_spread(
    outer: int, rows: int, columns: int, *, less: float, root: bool, chip: Chip,
    dtype: str = "float32", cores: int = 1,
) -> Program:  # fmt: skip
    """Variances and means over the rows of [outer, rows, columns], as `moments_of_columns`."""
    b = Builder(f"moments {outer}x{rows}x{columns}", cores=cores)
    d = Columns(b, outer, rows, columns, longest=min(BANK, HELD // rows), together=HELD)
    factor = 1 / (rows - less) if rows > less else inf
    source = d.whole("in", dtype, Role.INPUT)
    stored = {n: d.single(n, dtype) for n in ("var", "mean")}
    data = b.sbuf("data", d.size, dtype, slots=2)
    work = b.sbuf("work", d.size, "float32", slots=2)
    mean, squares = (b.sbuf(n, d.count, "float32", slots=2) for n in ("mean", "squares"))
    done = b.sbuf("done", d.count, dtype, slots=4)
    for tile in d.tiles():
        b.fresh(data, work, mean, squares)
        centre, spread = (t.rows(tile.parts, tile.wide) for t in (mean, squares))
        values, x = d.load(data, source, tile, Affine(), rows), d.box(work, tile, rows)
        b.emit("tensor_reduce", centre, d.by_column(data, tile, rows), op="add")
        b.emit("tensor_scalar", centre, centre, op0="multiply", imm0=1.0 / rows)
        b.emit("tensor_tensor", x, values, d.repeated(mean, tile, rows), op="subtract")
        b.emit("activation", x, x, op="square")
        b.emit("tensor_reduce", spread, d.by_column(work, tile, rows), op="add")
        for name, _ in finished(b, done, (spread, centre), factor, root):
            d.keep(stored[name], done, tile)
    return b.build()
