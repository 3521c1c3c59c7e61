"""Running sums, products and extremes along few long rows: each is cut over several partitions.

A partition scans its piece. What the pieces end with comes together in a partition for each row, is
scanned there from what the tile before left, and goes back: to each piece what comes before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from .down_columns import LEAST, UNITS
from .limits import P

__all__ = ["cumulate_few", "extremes_few", "logarithms_few", "suits_few"]

TOGETHER = 2048  # elements of a piece (chosen)
FEW = 16  # rows at most: each is a transfer (chosen)
STARTS = {**UNITS, "max": LEAST, "min": -LEAST}  # finite: a zero is added to them
OPS: dict[str, dict[str, str]] = {
    "add": {"op0": "add", "op1": "add"},
    "multiply": {"op0": "multiply", "op1": "add"},
    "max": {"op0": "max", "op1": "add"},
    "min": {"op0": "min", "op1": "add"},
}


def suits_few(rows: int, columns: int, cores: int) -> bool:
    """Whether there are few rows, and enough columns for all partitions."""
    share = ceil(rows / cores)
    return share <= FEW and columns >= 16 * (P // share)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    """`wide` columns on each of a row's partitions, from column `first` on.

    full, rest  partitions of a row that have all of them, and columns of the next one
    """

    first: Affine
    wide: int
    full: int
    rest: int


class _Few:
    """One core's rows; `fill` is what pieces hold where they lack elements."""

    def __init__(self, name: str, rows: int, columns: int, cores: int, fill: float) -> None:
        self.rows, self.columns, self.fill = ceil(rows / cores), columns, fill
        self.b = b = Builder(f"{name} {self.rows}x{columns}", cores=cores)
        self.pieces = P // self.rows
        self.parts = self.rows * self.pieces
        self.size = min(TOGETHER, ceil(columns / self.pieces))
        self.zeros = b.sbuf("zeros", max(self.size, self.pieces), "float32")
        b.emit("memset", self.zeros.rows(P, max(self.size, self.pieces)), value=0.0)

    def whole(self, name: str, dtype: str, role: Role) -> Buffer:
        return self.b.hbm(name, (self.rows, self.columns), dtype, role)

    def tiles(self) -> Iterator[_Tile]:
        span = self.pieces * self.size
        for first, some in self.b.tiles(self.columns, span):
            wide = ceil(some / self.pieces)
            yield _Tile(first=first, wide=wide, full=some // wide, rest=some % wide)

    def _moves(self, hbm: Buffer, buffer: Buffer, tile: _Tile) -> Iterator[tuple[Access, Access]]:
        with self.b.loop(self.rows) as r:
            at, part = r * self.columns + tile.first, r * (self.pieces * buffer.row_elements)
            there = hbm.box((tile.wide, tile.full), (1, tile.wide), at=at)
            yield buffer.rows(tile.full, tile.wide, part), there
            if tile.rest:
                last = hbm.rows(1, tile.rest, at + tile.full * tile.wide)
                part += tile.full * buffer.row_elements
                yield buffer.rows(1, tile.rest, part), last

    def load(self, buffer: Buffer, hbm: Buffer, tile: _Tile) -> Access:
        here = buffer.rows(self.parts, tile.wide)
        if tile.rest or tile.full < self.pieces:
            self.b.emit("memset", here, value=self.fill)
        for to, source in self._moves(hbm, buffer, tile):
            self.b.load(to, source)
        return here

    def store(self, hbm: Buffer, buffer: Buffer, tile: _Tile) -> None:
        for source, to in self._moves(hbm, buffer, tile):
            self.b.store(to, source)

    def scan(self, to: Access, x: Access, op: str, start: Access) -> None:
        zero = self.zeros.lanes(x.pattern[0][1], (1, x.pattern[1][1]))  # fmt: skip
        self.b.emit("tensor_tensor_scan", to, x, zero, start, **OPS[op])  # type: ignore[arg-type]


class _Before:
    """What comes before each piece: scans of what the pieces end with, from tile to tile.

    scanned  how many values of each piece take part: one, or a factor and an addend
    """

    def __init__(self, few: _Few, name: str, start: float, scanned: int = 1) -> None:
        self.few, b = few, few.b
        self.joined = [b.sbuf(f"{name} joined {k}", few.pieces, "float32", slots=2)
                       for k in range(scanned)]  # fmt: skip
        self.line = b.sbuf(f"{name} in order", few.pieces + 1, "float32", slots=2)
        self.carry = b.sbuf(f"{name} carried", 1, "float32")
        self.base = b.sbuf(f"{name} before", 1, "float32", slots=2)
        b.emit("memset", self.carry.rows(few.rows, 1), value=start)

    def of(self, *ends: Access, op: str = "") -> Access:
        """[parts, 1], by `op`, or of a factor and an addend."""
        b, few = self.few.b, self.few
        b.fresh(*self.joined, self.line, self.base)
        for buffer, end in zip(self.joined, ends, strict=True):
            b.emit("dma_copy", buffer.rows(few.rows, few.pieces), end, queue="join")
        values = [t.rows(few.rows, few.pieces) for t in self.joined]
        carry, line = self.carry.rows(few.rows, 1), self.line
        b.emit("tensor_copy", line.rows(few.rows, 1), carry)
        ordered = line.rows(few.rows, few.pieces, 1)
        if op:
            few.scan(ordered, values[0], op, carry)
        else:
            b.emit("tensor_tensor_scan", ordered, *values, carry, op0="multiply", op1="add")
        b.emit("tensor_copy", carry, line.rows(few.rows, 1, few.pieces))
        base = self.base.rows(few.parts, 1)
        b.emit("dma_copy", base, line.rows(few.rows, few.pieces), queue="join")
        return base


def _column(few: _Few, name: str, value: float) -> Access:
    column = few.b.sbuf(name, 1, "float32").rows(P, 1)
    few.b.emit("memset", column, value=value)
    return column.buffer.rows(few.parts, 1)


def cumulate_few(
    rows: int, columns: int, *, op: str, chip: Chip, dtype: str = "float32", out_dtype: str = "",
    cores: int = 1,
) -> Program:  # fmt: skip
    """out[r, c] = in[r, 0] op ... op in[r, c]"""
    few = _Few(f"cumulate_{op}", rows, columns, cores, UNITS[op])
    b = few.b
    source = few.whole("in", dtype, Role.INPUT)
    out = few.whole("out", out_dtype or dtype, Role.OUTPUT)
    data = b.sbuf("data", few.size, dtype, slots=2)
    result = b.sbuf("result", few.size, "float32", slots=2)
    start, before = _column(few, "unit", UNITS[op]), _Before(few, "ends", UNITS[op])
    for tile in few.tiles():
        b.fresh(data, result)
        x, y = few.load(data, source, tile), result.rows(few.parts, tile.wide)
        few.scan(y, x, op, start)
        base = before.of(result.rows(few.parts, 1, tile.wide - 1), op=op)
        b.emit("tensor_scalar", y, y, base, op0=op)
        few.store(out, result, tile)
    return b.build()


def extremes_few(
    rows: int, columns: int, *, op: str, chip: Chip, dtype: str = "float32", cores: int = 1
) -> Program:
    """values[r, c] = the largest or smallest of in[r, : c + 1], index[r, c] = where it is last."""
    few = _Few(f"running {op}", rows, columns, cores, STARTS[op])
    b = few.b
    source = few.whole("in", dtype, Role.INPUT)
    values, index = (
        few.whole("values", dtype, Role.OUTPUT),
        few.whole("index", "int32", Role.OUTPUT),
    )
    data = b.sbuf("data", few.size, dtype, slots=2)
    best, hit, where = (b.sbuf(n, few.size, "float32", slots=2) for n in ("best", "hit", "where"))
    order = b.sbuf("order", few.size, "float32")
    b.emit("iota", order.rows(P, few.size), channel=0, step=1, base=0)
    first, zero = _column(few, "start", UNITS[op]), _column(few, "zero", 0.0)
    value, place = _Before(few, "values", UNITS[op]), _Before(few, "places", 0.0)
    columns_of = _first_columns(few)
    for tile in few.tiles():
        b.fresh(data, best, hit, where)
        x = few.load(data, source, tile)
        y, hits, at = (t.rows(few.parts, tile.wide) for t in (best, hit, where))
        few.scan(y, x, op, first)
        base = value.of(best.rows(few.parts, 1, tile.wide - 1), op=op)
        b.emit("tensor_scalar", y, y, base, op0=op)
        b.emit("tensor_tensor", hits, x, y, op="equal")
        column = columns_of[tile.wide]
        b.emit("tensor_scalar", at, order.rows(few.parts, tile.wide), column, op0="add")
        b.emit("tensor_scalar", column, column, op0="add", imm0=float(few.pieces * tile.wide))
        b.emit("tensor_tensor", hits, hits, at, op="multiply")
        few.scan(at, hits, "max", zero)
        base = place.of(where.rows(few.parts, 1, tile.wide - 1), op="max")
        b.emit("tensor_scalar", at, at, base, op0="max")
        few.store(values, best, tile)
        few.store(index, where, tile)
    return b.build()


def _first_columns(few: _Few) -> dict[int, Access]:
    """The column where each piece of the first tile of a width starts, by that width."""
    b, found = few.b, dict[int, Access]()
    whole, rest = divmod(few.columns, few.pieces * few.size)
    widths = [(few.size, 0)] * (whole > 0)
    widths += [(ceil(rest / few.pieces), few.columns - rest)] * (rest > 0)
    for wide, base in widths:
        if wide in found:  # goes on where those before it ended
            continue
        line = b.sbuf(f"first columns of {wide}", few.pieces, "float32")
        b.emit("iota", line.rows(1, few.pieces), channel=0, step=wide, base=base)
        column = b.sbuf(f"first column of {wide}", 1, "float32").rows(few.parts, 1)
        of_all = line.box((few.pieces, 1), (0, few.rows), (1, few.pieces))
        b.emit("dma_copy", column, of_all, queue="join")
        found[wide] = column
    return found


def logarithms_few(
    rows: int, columns: int, *, chip: Chip, dtype: str = "float32", cores: int = 1
) -> Program:
    """out[r, c] = log(exp(in[r, 0]) + ... + exp(in[r, c])): sums of exp(x - m), with m the largest
    so far, cut to finite numbers. What comes before a piece counts exp(the m before it - m) times.
    """
    few = _Few("cumulate_exp", rows, columns, cores, LEAST)
    b = few.b
    source, out = few.whole("in", dtype, Role.INPUT), few.whole("out", dtype, Role.OUTPUT)
    data, done = (b.sbuf(n, few.size, dtype, slots=2) for n in ("data", "done"))
    top = b.sbuf("top", few.size + 1, "float32", slots=2)  # the first is that of the piece before
    power, fade = (b.sbuf(n, few.size, "float32", slots=2) for n in ("power", "fade"))
    end = b.sbuf("fade of the piece", 1, "float32", slots=2)
    least, zero = _column(few, "least", LEAST), _column(few, "zero", 0.0)
    tops, sums = _Before(few, "tops", LEAST), _Before(few, "sums", 0.0, scanned=2)
    for tile in few.tiles():
        b.fresh(data, done, top, power, fade, end)
        x, count = few.load(data, source, tile), tile.wide
        to, p, f = (t.rows(few.parts, count) for t in (done, power, fade))
        m, then = (top.rows(few.parts, count, at) for at in (1, 0))
        few.scan(m, x, "max", least)
        largest = tops.of(top.rows(few.parts, 1, count), op="max")
        b.emit("tensor_scalar", largest, largest, op0="min", imm0=-LEAST)
        b.emit("tensor_scalar", m, m, largest, op0="max", op1="min", imm1=-LEAST)
        b.emit("tensor_copy", top.rows(few.parts, 1), largest)
        b.emit("tensor_tensor", p, x, m, op="subtract")
        b.emit("activation", p, p, op="exp")
        b.emit("tensor_tensor", f, then, m, op="subtract")
        b.emit("activation", f, f, op="exp")
        b.emit("tensor_tensor_scan", p, f, p, zero, op0="multiply", op1="add")
        b.emit("activation", f, m, largest, op="exp", scale=-1.0)
        b.emit("tensor_copy", end.rows(few.parts, 1), fade.rows(few.parts, 1, count - 1))
        last = power.rows(few.parts, 1, count - 1)
        before = sums.of(end.rows(few.parts, 1), last)
        b.emit("scalar_tensor_tensor", p, f, before, p, op0="multiply", op1="add")
        b.emit("activation", p, p, op="log")
        b.emit("tensor_tensor", to, p, m, op="add")
        few.store(out, done, tile)
    return b.build()
