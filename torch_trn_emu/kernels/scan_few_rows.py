"""Few long rows, each cut over several partitions: a layout of `scans`.

A partition scans its piece. What the pieces end with comes together in a partition for each row, is
scanned there from what the tile before left, and goes back: to each piece what comes before it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from ..isa import Access, Affine, Buffer, Builder, Role
from .limits import P
from .pieces import beside, cut_rows, to_pieces
from .scans import Number, number

__all__ = ["FewRows", "suits_few"]

TOGETHER = 2048  # elements of a piece (chosen)
FEW = 16  # rows at most: each is a transfer (chosen)


def suits_few(rows: int, columns: int, cores: int) -> bool:
    """Whether there are few rows, and enough columns for all partitions."""
    share = ceil(rows / cores)
    return share <= FEW and columns >= 16 * (P // share)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    """`some` columns of each row from column `first` on, `wide` on a partition."""

    first: Affine
    some: int
    wide: int


class _State:
    """What comes before each piece: scans of what the pieces end with, from tile to tile.

    scanned  how many values of each piece take part: one, or a factor and an addend
    """

    def __init__(self, few: "FewRows", name: str, op: str, start: float, scanned: int) -> None:
        self.few, self.op, b = few, op, few.b
        self.unit = number(b, f"{name} unit", start).column.rows(few.parts, 1)
        self.joined = [b.sbuf(f"{name} joined {k}", few.pieces, "float32", slots=2)
                       for k in range(scanned)]  # fmt: skip
        self.line = b.sbuf(f"{name} in order", few.pieces + 1, "float32", slots=2)
        self.kept = b.sbuf(f"{name} carried", 1, "float32")
        self.base = b.sbuf(f"{name} before", 1, "float32", slots=2)
        b.emit("memset", self.kept.rows(few.rows, 1), value=start)

    def before(self, *ends: Access) -> Access:
        """[parts, 1], made from what pieces end with."""
        few, line, b = self.few, self.line, self.few.b
        b.fresh(*self.joined, line, self.base)
        values = [beside(b, t, end, few.rows) for t, end in zip(self.joined, ends, strict=True)]
        kept, ordered = self.kept.rows(few.rows, 1), line.rows(few.rows, few.pieces, 1)
        b.emit("tensor_copy", line.rows(few.rows, 1), kept)
        few.scan(ordered, values, kept, self.op)
        b.emit("tensor_copy", kept, line.rows(few.rows, 1, few.pieces))
        base = self.base.rows(few.parts, 1)
        b.emit("dma_copy", base, line.rows(few.rows, few.pieces), queue="join")
        return base


class FewRows:
    """One core's rows."""

    def __init__(self, name: str, rows: int, columns: int, cores: int) -> None:
        self.rows, self.columns = ceil(rows / cores), columns
        self.b = b = Builder(f"{name} {self.rows}x{columns}", cores=cores)
        self.pieces = P // self.rows
        self.parts = self.rows * self.pieces
        self.size = min(TOGETHER, ceil(columns / self.pieces))
        self.zero = number(b, "zero", 0.0)

    def whole(self, name: str, dtype: str, role: Role) -> Buffer:
        return self.b.hbm(name, (self.rows, self.columns), dtype, role)

    def state(self, name: str, op: str, start: float, values: int = 1) -> _State:
        return _State(self, name, op, start, values)

    def walk(self) -> Iterator[_Tile]:
        span = self.pieces * self.size
        for first, some in self.b.tiles(self.columns, span):
            yield _Tile(first=first, some=some, wide=ceil(some / self.pieces))

    def _moves(self, hbm: Buffer, buffer: Buffer, tile: _Tile) -> Iterator[tuple[Access, Access]]:
        rows = self.rows, self.pieces, self.columns
        return cut_rows(self.b, buffer, hbm, rows, tile.some, tile.wide, tile.first)

    def take(self, buffer: Buffer, hbm: Buffer, tile: _Tile, fill: float) -> Access:
        here = self.of(buffer, tile)
        if tile.some < self.pieces * tile.wide:
            self.b.emit("memset", here, value=fill)
        for to, source in self._moves(hbm, buffer, tile):
            self.b.load(to, source)
        return here

    def put(self, hbm: Buffer, buffer: Buffer, tile: _Tile) -> None:
        for source, to in self._moves(hbm, buffer, tile):
            self.b.store(to, source)

    def of(self, buffer: Buffer, tile: _Tile) -> Access:
        return self.part(buffer, tile, 0, tile.wide)

    def part(self, buffer: Buffer, tile: _Tile, first: int, count: int) -> Access:
        return buffer.rows(self.parts, count, first)

    def length(self, tile: _Tile) -> int:
        return tile.wide

    def scan(self, to: Access, values: list[Access], start: Access, op: str) -> None:
        """By `op` of one value with the state, or of an addend with a factor times the state."""
        if len(values) > 1:
            self.b.emit("tensor_tensor_scan", to, *values, start, op0="multiply", op1=op)
            return
        zero = self.zero.column.box((1, to.partitions), (0, to.free))
        self.b.emit("tensor_tensor_scan", to, values[0], zero, start, op0=op, op1="add")

    def chain(
        self, to: Buffer, state: _State, x: Buffer, tile: _Tile, *, most: Number | None = None,
        fade: Buffer | None = None, tops: tuple[Access, ...] = (),
    ) -> Access:  # fmt: skip
        b, made, op = self.b, self.of(to, tile), state.op
        values, end = [self.of(x, tile)], self.part(to, tile, tile.wide - 1, 1)
        if fade is not None:
            factors = self.of(fade, tile)
            self.scan(made, [factors, *values], state.unit, op)
            b.emit("activation", factors, *tops, op="exp", scale=-1.0)
            base = state.before(self.part(fade, tile, tile.wide - 1, 1), end)
            b.emit("scalar_tensor_tensor", made, factors, base, made, op0="multiply", op1=op)
            return base
        self.scan(made, values, state.unit, op)
        base, limit = state.before(end), dict[str, Any]()
        if most:
            b.emit("tensor_scalar", base, base, op0="min", imm0=most.value)
            limit = {"op1": "min", "imm1": most.value}
        b.emit("tensor_scalar", made, made, base, op0=op, **limit)
        return base

    def carry(self, state: _State, made: Buffer, tile: _Tile) -> None:
        """Done by the state itself."""

    def places(self) -> Callable[[_Tile], Access]:
        b, size = self.b, self.size
        order, place = (b.sbuf(n, size, "float32") for n in ("order", "places"))
        b.emit("iota", order.rows(P, size), channel=0, step=1, base=0)
        columns = self._first_columns()

        def made(tile: _Tile) -> Access:
            to, column = self.of(place, tile), columns[tile.wide]
            b.emit("tensor_scalar", to, self.of(order, tile), column, op0="add")
            b.emit("tensor_scalar", column, column, op0="add", imm0=float(self.pieces * tile.wide))
            return to

        return made

    def _first_columns(self) -> dict[int, Access]:
        """The column where each piece of the first tile of a width starts, by that width."""
        b, found = self.b, dict[int, Access]()
        whole, rest = divmod(self.columns, self.pieces * self.size)
        widths = [(self.size, 0)] * (whole > 0)
        widths += [(ceil(rest / self.pieces), self.columns - rest)] * (rest > 0)
        for wide, base in widths:
            if wide in found:  # goes on where those before it ended
                continue
            line = b.sbuf(f"first columns of {wide}", self.pieces, "float32")
            b.emit("iota", line.rows(1, self.pieces), channel=0, step=wide, base=base)
            column = b.sbuf(f"first column of {wide}", 1, "float32")
            to_pieces(b, column, line, self.rows, self.pieces)
            found[wide] = column.rows(self.parts, 1)
        return found
