"""Variance and mean: along rows by bn_stats where each has a partition, else as steps over rows;
along columns by products with ones, twice.
"""

from math import ceil, inf

from ..chip import Chip
from ..isa import Access, Affine, Builder, Program, Role, rows_of
from .columns import share_of
from .limits import BANK, BN_STATS, WIDE, P
from .row_layout import layout_of
from .row_values import Input, Kind, Output, Values, reduced, step
from .rows import row_program

__all__ = ["moments_of_columns", "moments_of_rows"]


def moments_of_rows(
    rows: int, columns: int, inner: int = 1, *, less: float, root: bool, chip: Chip,
    dtype: str = "float32", cores: int = 1,
) -> Program:  # fmt: skip
    """var[r] = the squares' sum about the mean / (columns - less), its root if asked; mean[r]."""
    values = _steps(columns, less, root, dtype)
    layout = layout_of(ceil(rows / cores), columns, inner, values)
    if inner > 1 or layout.together > 1 or layout.pieces > 1:
        name = f"moments {rows}x{columns}x{inner}"
        return row_program(name, rows, columns, values, chip=chip, cores=cores, inner=inner)
    return _stats_of_rows(ceil(rows / cores), columns, less, root, dtype, cores)


def _steps(columns: int, less: float, root: bool, dtype: str) -> Values:
    """The mean, then the squares about it: each partition has several rows, or a part of one."""
    factor = 1 / (columns - less) if columns > less else inf
    last = step("var", "tensor_scalar", "spread", kind=Kind.COLUMN, op0="multiply", imm0=factor)
    if root:
        last = step("var", "activation", "spread", kind=Kind.COLUMN, op="sqrt", scale=factor)
    return Values(
        [Input("in", dtype)],
        [
            reduced("sum", "in"),
            step(
                "mean", "tensor_scalar", "sum", kind=Kind.COLUMN, op0="multiply", imm0=1 / columns
            ),
            step("centred", "tensor_scalar", "in", "mean", op0="subtract"),
            step("squares", "activation", "centred", op="square"),
            reduced("spread", "squares"),
            last,
        ],
        [Output("var", dtype, "var"), Output("mean", dtype, "mean")],
    )


def _stats_of_rows(
    rows: int, columns: int, less: float, root: bool, dtype: str, cores: int
) -> Program:
    b = Builder(f"moments {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    stored = [b.hbm(n, (rows, 1), dtype, Role.OUTPUT) for n in ("var", "mean")]
    wide, pieces = min(columns, WIDE), ceil(columns / BN_STATS)
    data = b.sbuf("data", wide, dtype, slots=2)
    stats = b.sbuf("stats", 6 * pieces, "float32", slots=2)
    pair = b.sbuf("mean and variance", 2, "float32", slots=2)
    done = b.sbuf("done", 2, dtype, slots=2)
    per = wide // BN_STATS
    for r0, size in b.tiles(rows, P):
        b.fresh(stats, pair, done)
        for k, c0, count in b.parts(columns, wide):
            b.fresh(data)
            there = Access(
                buffer=source, offset=r0 * columns + c0, pattern=((columns, size), (1, count))
            )
            b.load(rows_of(data, size, count), there)
            for piece in range(ceil(count / BN_STATS)):
                of = min(BN_STATS, count - piece * BN_STATS)
                to = rows_of(stats, size, 6, (k * per + piece) * 6)
                b.emit("bn_stats", to, rows_of(data, size, of, piece * BN_STATS))
        b.emit("bn_aggr", rows_of(pair, size, 2), rows_of(stats, size, 6 * pieces))
        mean, var = (rows_of(pair, size, 1, n) for n in (0, 1))
        _finish(b, rows_of(done, size, 1), var, _factor(columns, less), root)
        b.emit("tensor_copy", rows_of(done, size, 1, 1), mean)
        for n, hbm in enumerate(stored):
            b.store(rows_of(hbm, size, 1, r0), rows_of(done, size, 1, n))
    return b.build()


def moments_of_columns(
    outer: int, rows: int, columns: int, *, less: float, root: bool, chip: Chip,
    dtype: str = "float32", cores: int = 1,
) -> Program:  # fmt: skip
    """The same over the rows of [outer, rows, columns]: the mean is made on every partition."""
    outer, columns = share_of(outer, columns, cores)
    b = Builder(f"moments {outer}x{rows}x{columns}", cores=cores)
    source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
    stored = {n: b.hbm(n, (outer, columns), dtype, Role.OUTPUT) for n in ("var", "mean")}
    wide = min(columns, BANK)
    data = b.sbuf("data", wide, dtype, slots=3)
    work, mean = b.sbuf("work", wide, "float32", slots=2), b.sbuf("mean", wide, "float32", slots=2)
    done = b.sbuf("done", wide, dtype, slots=4)
    share = b.sbuf("1 / rows", P, "float32")
    total = b.psum("total", BANK, slots=4)
    b.emit("memset", rows_of(share, P, P), value=1.0 / rows)
    with b.loop(outer) as o:
        for c0, count in b.tiles(columns, wide):
            b.fresh(mean, total)
            at = o * rows * columns + c0

            def load(r0: Affine, some: int, at: Affine = at, count: int = count) -> Access:
                b.fresh(data, work)
                b.load(rows_of(data, some, count), rows_of(source, some, count, at + r0 * columns))
                whole = rows_of(work, some, count)
                b.emit("tensor_copy", whole, rows_of(data, some, count))
                return whole

            for r0, some in b.tiles(rows, P):
                x = load(r0, some)
                b.emit("nc_matmul", rows_of(total, P, count), rows_of(share, some, P), x)
            b.emit("tensor_copy", rows_of(mean, P, count), rows_of(total, P, count))
            b.fresh(total)
            for r0, some in b.tiles(rows, P):
                x = load(r0, some)
                b.emit("tensor_tensor", x, x, rows_of(mean, some, count), op="subtract")
                b.emit("activation", x, x, op="square")
                b.emit("nc_matmul", rows_of(total, 1, count), rows_of(share, some, 1), x)
            for name, value in (("var", total), ("mean", mean)):
                b.fresh(done)
                to, source_ = rows_of(done, 1, count), rows_of(value, 1, count)
                if name == "var":
                    _finish(b, to, source_, _factor(rows, less), root)
                else:
                    b.emit("tensor_copy", to, source_)
                b.store(rows_of(stored[name], 1, count, o * columns + c0), to)
    return b.build()


def _factor(count: int, less: float) -> float:
    """From the squares' mean to their sum / (count - less), which is not finite with none left."""
    return count / (count - less) if count > less else inf


def _finish(b: Builder, to: Access, variance: Access, factor: float, root: bool) -> None:
    if root:
        b.emit("activation", to, variance, op="sqrt", scale=factor)
    else:
        b.emit("tensor_scalar", to, variance, op0="multiply", imm0=factor)
