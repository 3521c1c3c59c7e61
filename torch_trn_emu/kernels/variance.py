"""Variance and mean: along rows by bn_stats where each has a partition, else as steps over rows;
along columns by products with ones, twice.
"""

from collections.abc import Iterable, Iterator
from math import ceil, inf

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from .limits import BANK, BN_STATS, WIDE, P, evenly
from .reduce_leading import beside, lines_of, share_of
from .rows import row_program
from .rows.layout import JOINED, layout_of
from .rows.values import Input, Kind, Output, Values, reduced, step

__all__ = ["finished", "moments_of_columns", "moments_of_rows"]

BANKS = 4  # of PSUM whose columns are worked on at once (chosen)


def moments_of_rows(
    rows: int, columns: int, inner: int = 1, *, less: float, root: bool, chip: Chip,
    dtype: str = "float32", cores: int = 1,
) -> Program:  # fmt: skip
    """var[r] = the squares' sum about the mean / (columns - less), its root if asked; mean[r]."""
    values = _steps(columns, less, root, dtype)
    layout = layout_of(ceil(rows / cores), columns, inner, values)
    # Pieces are passed over three times, and joined twice; bn_stats passes over a row once.
    shorter = columns - 3 * columns // layout.pieces > 2 * JOINED
    if inner > 1 or layout.together > 1 or (layout.pieces > 1 and shorter):
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
    wide, pieces = evenly(columns, WIDE, BN_STATS), ceil(columns / BN_STATS)
    data = b.sbuf("data", wide, dtype, slots=2)
    stats = b.sbuf("stats", 6 * pieces, "float32", slots=2)
    pair = b.sbuf("mean and variance", 2, "float32", slots=2)
    done = b.sbuf("done", 2, dtype, slots=2)
    per = wide // BN_STATS
    for r0, size in b.tiles(rows, P):
        b.fresh(stats, pair, done)
        for k, c0, count in b.parts(columns, wide):
            b.fresh(data)
            there = source.box((columns, size), (1, count), at=r0 * columns + c0)
            b.load(data.rows(size, count), there)
            for piece in range(ceil(count / BN_STATS)):
                of = min(BN_STATS, count - piece * BN_STATS)
                to = stats.rows(size, 6, (k * per + piece) * 6)
                b.emit("bn_stats", to, data.rows(size, of, piece * BN_STATS))
        b.emit("bn_aggr", pair.rows(size, 2), stats.rows(size, 6 * pieces))
        mean, var = (pair.rows(size, 1, n) for n in (0, 1))
        _scaled(b, done.rows(size, 1), var, _factor(columns, less), root)
        b.emit("tensor_copy", done.rows(size, 1, 1), mean)
        for n, hbm in enumerate(stored):
            b.store(hbm.rows(size, 1, r0), done.rows(size, 1, n))
    return b.build()


def moments_of_columns(
    outer: int, rows: int, columns: int, *, less: float, root: bool, chip: Chip,
    dtype: str = "float32", cores: int = 1,
) -> Program:  # fmt: skip
    """The same over the rows of [outer, rows, columns]: the mean is made on every partition."""
    together = beside(outer, rows, columns, cores, BANK)
    if outer < cores and together > 1:
        cores = 1
    outer, columns = share_of(outer, columns, cores)
    b = Builder(f"moments {outer}x{rows}x{columns}", cores=cores)
    source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
    stored = {n: b.hbm(n, (outer, columns), dtype, Role.OUTPUT) for n in ("var", "mean")}
    wide = evenly(columns, BANK if together > 1 else BANKS * BANK)
    columns_of = _Columns(b, source, (rows, together), wide, dtype)
    done, spread = b.sbuf("done", wide, dtype, slots=4), b.sbuf("spread", wide, "float32", slots=2)
    with b.loop(outer) as o:
        for c0, count in b.tiles(columns, wide):
            at = o * rows * columns + c0
            columns_of.averaged(at, count)
            columns_of.squared(at, count)
            b.fresh(spread)
            columns_of.folded(spread.rows(1, count), 1, count)
            both = (t.rows(1, count) for t in (spread, columns_of.mean))
            for name, to in finished(b, done, both, _factor(rows, less), root):
                b.store(stored[name].rows(1, count, o * columns + c0), to)
    return b.build()


class _Columns:
    """The mean on every partition, then the mean square about it, by products with ones.

    Squares about the mean of 16-bit elements are rounded to bfloat16, which the array multiplies
    at its full rate. `rows` says how many there are, and how many of them make a line.
    """

    def __init__(
        self, b: Builder, source: Buffer, rows: tuple[int, int], wide: int, dtype: str
    ) -> None:
        self.b, self.source, self.rows, self.wide = b, source, rows, wide
        self.together = rows[1]
        line, held = wide * self.together, "float32" if dtype == "float32" else "bfloat16"
        self.data = b.sbuf("data", line, dtype, slots=6)
        self.work = b.sbuf("work", line, "float32", slots=3)
        self.squares = b.sbuf("squares", line, held, slots=2)
        self.mean = b.sbuf("mean", wide, "float32", slots=2)
        self.ones = b.sbuf("ones", P, dtype)
        self.one = self.ones if held == dtype else b.sbuf("one", 1, held)
        self.total = b.psum("total", BANK * ceil(line / BANK), slots=2)
        for buffer in dict.fromkeys((self.ones, self.one)):
            b.emit("memset", buffer.rows(P, buffer.row_elements), value=1.0)

    def _bring(self, at: Affine, count: int) -> Iterator[tuple[Access, int, int, int]]:
        """Tiles of lines, with how many, their elements and rows of a line."""
        b = self.b
        for there, some, size, of in lines_of(b, self.source, self.rows, at, count * self.together):
            b.fresh(self.data)
            x = self.data.rows(some, size)
            b.load(x, there)
            yield x, some, size, of

    def averaged(self, at: Affine, count: int) -> None:
        b = self.b
        b.fresh(self.mean, self.total)
        for x, *_ in self._bring(at, count):
            self._added(x, self.ones, P)
        self.folded(self.mean.rows(P, count), P, count)

    def squared(self, at: Affine, count: int) -> None:
        b = self.b
        b.fresh(self.total)
        for x, some, size, of in self._bring(at, count):
            b.fresh(self.work, self.squares)
            about, squares = (t.rows(some, size) for t in (self.work, self.squares))
            pattern = ((self.wide, some), (0, of), (1, size // of))
            mean = self.mean.box(*pattern)
            b.emit("tensor_tensor", about, x, mean, op="subtract")
            b.emit("activation", squares, about, op="square")
            self._added(squares, self.one, 1)

    def _added(self, x: Access, ones: Buffer, partitions: int) -> None:
        """Products of a tile with ones, a bank at a time."""
        some, size = x.partitions, x.free
        for c in range(0, size, BANK):
            count = min(BANK, size - c)
            to, part = (t.rows(n, count, c)
                        for t, n in ((self.total, partitions), (x.buffer, some)))  # fmt: skip
            self.b.emit("nc_matmul", to, ones.rows(some, partitions), part)

    def folded(self, to: Access, partitions: int, count: int) -> None:
        """The sums of a line as the averages of its columns."""
        b, whole = self.b, self.total.rows(partitions, count)
        if self.together > 1:
            pitch = self.total.row_elements
            pattern = ((pitch, partitions), (1, count), (count, self.together))
            b.emit("tensor_reduce", to, self.total.box(*pattern), op="add")
            whole = to
        b.emit("tensor_scalar", to, whole, op0="multiply", imm0=1.0 / self.rows[0])


def _factor(count: int, less: float) -> float:
    """From the squares' mean to their sum / (count - less), which is not finite with none left."""
    return count / (count - less) if count > less else inf


def finished(
    b: Builder, done: Buffer, values: Iterable[Access], factor: float, root: bool
) -> Iterator[tuple[str, Access]]:
    """The variance, from what is `factor` times smaller, or its root, and the mean, as stored."""
    for name, value in zip(("var", "mean"), values, strict=True):
        b.fresh(done)
        to = done.rows(value.partitions, value.free)
        if name == "var":
            _scaled(b, to, value, factor, root)
        else:
            b.emit("tensor_copy", to, value)
        yield name, to


def _scaled(b: Builder, to: Access, variance: Access, factor: float, root: bool) -> None:
    if root:
        b.emit("activation", to, variance, op="sqrt", scale=factor)
    else:
        b.emit("tensor_scalar", to, variance, op0="multiply", imm0=factor)
