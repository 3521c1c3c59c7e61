"""Scans down [outer, rows, columns], and the largest with its place, row after row: a partition has
columns, and what it knows of them after each row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Index, Program, Role
from .columns import Columns, Tile
from .limits import P
from .scans import UNITS, Number, number

__all__ = ["Down", "largest_down"]

BETTER = {"max": "greater", "min": "less"}


class _State(NamedTuple):
    buffer: Buffer
    op: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """`some` rows of a tile, from row `r0` on."""

    tile: Tile
    r0: Affine
    some: int


class Down(Columns):
    """Scans from row to row of [outer, rows, columns]: a layout of `scans`.

    Of one column, which has a partition unless rows are `short`, all rows are one instruction.
    """

    def __init__(
        self, name: str, outer: int, rows: int, columns: int, cores: int, *, together: int = 0,
        least: int = 8,
    ) -> None:  # fmt: skip
        b = Builder(f"{name} {outer}x{rows}x{columns}", cores=cores)
        super().__init__(b, outer, rows, columns, together=together, least=least)
        self.zero = number(b, "zero", 0.0)
        self.starts: list[tuple[Buffer, float]] = []

    def state(self, name: str, op: str, start: float, values: int = 1) -> _State:
        buffer = self.b.sbuf(name, self.count, "float32", slots=2)
        return _State(self._started(buffer, start), op)

    def _started(self, buffer: Buffer, start: float) -> Buffer:
        """Holds `start` at the beginning of each tile."""
        self.starts.append((buffer, start))
        return buffer

    def walk(self) -> Iterator[_Group]:
        for tile in self.tiles():
            self.b.fresh(*(buffer for buffer, _ in self.starts))
            for buffer, start in self.starts:
                wide = min(tile.wide, buffer.row_elements)
                self.b.emit("memset", buffer.rows(tile.parts, wide), value=start)
            for r0, some in self.groups():
                yield _Group(tile=tile, r0=r0, some=some)

    def take(self, buffer: Buffer, hbm: Buffer, group: _Group, fill: float) -> Access:
        return self.load(buffer, hbm, group.tile, group.r0, group.some)

    def put(self, hbm: Buffer, buffer: Buffer, group: _Group) -> None:
        self.store(hbm, buffer, group.tile, group.r0, group.some)

    def of(self, buffer: Buffer, group: _Group) -> Access:
        return self.box(buffer, group.tile, group.some)

    def part(self, buffer: Buffer, group: _Group, first: int, count: int) -> Access:
        return self.box(buffer, group.tile, count, first=first)

    def length(self, group: _Group) -> int:
        return group.some

    def chain(
        self, to: Buffer, state: _State, x: Buffer, group: _Group, *, most: Number | None = None,
        fade: Buffer | None = None, tops: tuple[Access, ...] = (),
    ) -> Access:  # fmt: skip
        b, tile, some, op = self.b, group.tile, group.some, state.op
        start = state.buffer.rows(tile.parts, tile.wide)
        if not self.short and tile.wide < some:
            self._scans(to, state, x, group, most, fade)
            return start

        def one(r: Index, before: Access) -> None:
            if fade is not None:
                faded = self.row(fade, tile, r)
                b.emit("tensor_tensor", faded, before, faded, op="multiply")
                before = faded
            made, value = self.row(to, tile, r), self.row(x, tile, r)
            b.emit("tensor_tensor", made, before, value, op=op)

        one(0, start)
        if some > 1:
            with b.loop(some - 1) as r:
                one(r + 1, self.row(to, tile, r))
        if most is not None:
            made = self.of(to, group)
            b.emit("tensor_scalar", made, made, op0="min", imm0=most.value)
        return start

    def _scans(
        self, to: Buffer, state: _State, x: Buffer, group: _Group, most: Number | None,
        fade: Buffer | None,
    ) -> None:  # fmt: skip
        """The same column after column, where a tile has fewer of them than rows."""
        b, tile, parts = self.b, group.tile, group.tile.parts
        each = (tile.wide, group.some)
        last = "min" if most else "add"
        other = (most or self.zero).column.box((1, parts), (0, group.some))
        with b.loop(tile.wide) as c:
            made, values = (t.lanes(parts, each, at=c) for t in (to, x))
            start = state.buffer.rows(parts, 1, c)
            if fade is None:
                b.emit("tensor_tensor_scan", made, values, other, start, op0=state.op, op1=last)
            else:
                factors = fade.lanes(parts, each, at=c)
                b.emit(
                    "tensor_tensor_scan", made, factors, values, start, op0="multiply", op1=state.op
                )

    def carry(self, state: _State, made: Buffer, group: _Group) -> None:
        tile, last = group.tile, group.some - 1
        if group.some < self.rows:
            to = state.buffer.rows(tile.parts, tile.wide)
            self.b.emit("tensor_copy", to, self.row(made, tile, last))

    def places(self) -> Callable[[_Group], Access]:
        b = self.b
        order, place = (b.sbuf(n, self.size, "float32") for n in ("order", "places"))
        self.order(order, 1)
        first = self._started(b.sbuf("first row", 1, "float32", slots=2), 0.0)

        def made(group: _Group) -> Access:
            tile, row = group.tile, first.rows(group.tile.parts, 1)
            numbers = self.box(order, tile, group.some, pitch=self.count)
            b.emit("tensor_scalar", self.of(place, group), numbers, row, op0="add")
            b.emit("tensor_scalar", row, row, op0="add", imm0=float(group.some))
            return self.of(place, group)

        return made

    def order(self, buffer: Buffer, step: int) -> None:
        """0 in the first row, and `step` more in each of the others."""
        b, tile = self.b, Tile(parts=P, wide=self.count)
        if self.count == 1:
            b.emit("iota", buffer.rows(P, self.together), channel=0, step=step, base=0)
            return
        b.emit("memset", self.row(buffer, tile, 0), value=0.0)
        if self.together > 1:
            with b.loop(self.together - 1) as r:
                before, made = (self.row(buffer, tile, n) for n in (r, r + 1))
                b.emit("tensor_scalar", made, before, op0="add", imm0=float(step))


def largest_down(
    outer: int, rows: int, columns: int, *, sign: float, chip: Chip, dtype: str = "float32",
    cores: int = 1,
) -> Program:  # fmt: skip
    """values[o, c] = the largest (or, with sign -1, smallest) of in[o, :, c], index: its first."""
    d = Down("largest", outer, rows, columns, cores)
    b, op = d.b, "max" if sign > 0 else "min"
    source = d.whole("in", dtype, Role.INPUT)
    values, index = d.single("values", dtype), d.single("index", "int32")
    data, hit = b.sbuf("data", d.size, dtype, slots=2), b.sbuf("hit", d.size, "float32", slots=2)
    backwards = b.sbuf("backwards", d.size, "float32")  # so that the first place is the largest
    best, found, its, better, where = (
        b.sbuf(n, d.count, "float32", slots=2)
        for n in ("best", "found", "its place", "better", "where")
    )
    last = b.sbuf("last row", 1, "float32", slots=2)
    ends = b.sbuf("value", d.count, dtype, slots=2), b.sbuf("place", d.count, "int32", slots=2)
    d.order(backwards, -1)
    for tile in d.tiles():
        b.fresh(best, where, last, *ends)
        top, at, new, place, is_better = (
            t.rows(tile.parts, tile.wide) for t in (best, where, found, its, better)
        )
        row = last.rows(tile.parts, 1)
        for to, start in ((top, UNITS[op]), (at, 0.0), (row, 0.0)):
            b.emit("memset", to, value=start)
        for r0, some in d.groups():
            b.fresh(data, hit, found, its, better)
            d.load(data, source, tile, r0, some)
            _largest_of_group(d, tile, some, (data, hit, backwards), (new, place), op)
            b.emit("tensor_scalar", place, place, row, op0="subtract", reverse0=True)
            b.emit("tensor_tensor", is_better, new, top, op=BETTER[op])
            b.emit("select", at, is_better, place, at)
            b.emit("tensor_tensor", top, top, new, op=op)
            b.emit("tensor_scalar", row, row, op0="add", imm0=float(some))
        for buffer, made, hbm in ((ends[0], top, values), (ends[1], at, index)):
            b.emit("tensor_copy", buffer.rows(tile.parts, tile.wide), made)
            d.keep(hbm, buffer, tile)
    return b.build()


def _largest_of_group(
    d: Down, tile: Tile, some: int, work: tuple[Buffer, Buffer, Buffer],
    results: tuple[Access, Access], op: str,
) -> None:  # fmt: skip
    """The best of some rows of each column, and -r of the first row r among them that has it."""
    b, (data, hit, backwards), (best, place) = d.b, work, results
    b.emit("tensor_reduce", best, d.by_column(data, tile, some), op=op)
    every = d.repeated(best.buffer, tile, some)
    x, hits = d.box(data, tile, some), d.box(hit, tile, some)
    # -r where the best is, and less than all of those elsewhere
    b.emit("tensor_tensor", hits, x, every, op="not_equal")
    b.emit("scalar_tensor_tensor", hits, hits, d.box(backwards, tile, some, pitch=d.count),
           op0="multiply", op1="add", imm0=-float(d.together))  # fmt: skip
    b.emit("tensor_reduce", place, d.by_column(hit, tile, some), op="max")
