"""Running sums, products and extremes down [outer, rows, columns], and the largest with its place,
row after row: a partition has columns, and what it knows of them after each row.
"""

from math import inf

from ..chip import Chip
from ..isa import Access, Buffer, Builder, Index, Program, Role
from .columns import Columns, Tile
from .limits import P

__all__ = ["LEAST", "cumulate_down", "extremes_down", "largest_down", "logarithms_down"]

LEAST = -(2 - 2**-23) * 2.0**127  # of float32: m starts there, so that x - m is a number
UNITS = {"add": 0.0, "multiply": 1.0, "max": -inf, "min": inf}
BETTER = {"max": "greater", "min": "less"}


class _Down(Columns):
    """Steps from row to row."""

    def __init__(self, name: str, outer: int, rows: int, columns: int, cores: int) -> None:
        b = Builder(f"{name} {outer}x{rows}x{columns}", cores=cores)
        super().__init__(b, outer, rows, columns)
        self.zero = b.sbuf("zero", 1, "float32")
        b.emit("memset", self.zero.rows(P, 1), value=0.0)

    def chain(
        self, to: Buffer, state: Access, x: Buffer, tile: Tile, some: int, op: str,
        fade: Buffer | None = None,
    ) -> None:  # fmt: skip
        """to[r] = (to[r - 1] times fade[r]) op x[r], from `state` on, which is the last in the end.

        `fade` is written over.
        """
        if not self.short and tile.wide < some:
            self._scans(to, state, x, tile, some, op, fade)
            return
        b = self.b

        def one(r: Index, before: Access) -> None:
            if fade is not None:
                faded = self.row(fade, tile, r)
                b.emit("tensor_tensor", faded, before, faded, op="multiply")
                before = faded
            made, value = self.row(to, tile, r), self.row(x, tile, r)
            b.emit("tensor_tensor", made, before, value, op=op)

        one(0, state)
        if some > 1:
            with b.loop(some - 1) as r:
                one(r + 1, self.row(to, tile, r))
        b.emit("tensor_copy", state, self.row(to, tile, some - 1))

    def _scans(
        self, to: Buffer, state: Access, x: Buffer, tile: Tile, some: int, op: str,
        fade: Buffer | None,
    ) -> None:  # fmt: skip
        """The same column after column, where a tile has fewer of them than rows."""
        b, parts, wide = self.b, tile.parts, tile.wide
        none = self.zero.box((1, parts), (0, some))
        with b.loop(wide) as c:
            made, values = (t.lanes(parts, (wide, some), at=c) for t in (to, x))
            start = state.buffer.rows(parts, 1, c)
            if fade is None:
                b.emit("tensor_tensor_scan", made, values, none, start, op0=op, op1="add")
            else:
                pattern = ((fade.row_elements, parts), (wide, some))
                factors = fade.box(*pattern, at=c)
                b.emit("tensor_tensor_scan", made, factors, values, start, op0="multiply", op1=op)
        b.emit("tensor_copy", state, self.row(to, tile, some - 1))

    def order(self, buffer: Buffer, step: int) -> None:
        """0 in the first row, and `step` more in each of the others."""
        b, tile = self.b, Tile(parts=P, wide=self.count)
        b.emit("memset", self.row(buffer, tile, 0), value=0.0)
        if self.together > 1:
            with b.loop(self.together - 1) as r:
                before, made = (self.row(buffer, tile, n) for n in (r, r + 1))
                b.emit("tensor_scalar", made, before, op0="add", imm0=float(step))


def cumulate_down(
    outer: int, rows: int, columns: int, *, op: str, chip: Chip, dtype: str = "float32",
    out_dtype: str = "", cores: int = 1,
) -> Program:  # fmt: skip
    """out[o, r, c] = in[o, 0, c] op ... op in[o, r, c], in float32."""
    d = _Down(f"cumulate_{op}", outer, rows, columns, cores)
    b = d.b
    source = d.whole("in", dtype, Role.INPUT)
    out = d.whole("out", out_dtype or dtype, Role.OUTPUT)
    data = b.sbuf("data", d.size, dtype, slots=3)
    result = b.sbuf("result", d.size, "float32", slots=3)
    state = b.sbuf("state", d.count, "float32", slots=2)
    for tile in d.tiles():
        b.fresh(state)
        total = state.rows(tile.parts, tile.wide)
        b.emit("memset", total, value=UNITS[op])
        for r0, some in d.groups():
            b.fresh(data, result)
            d.load(data, source, tile, r0, some)
            d.chain(result, total, data, tile, some, op)
            d.store(out, result, tile, r0, some)
    return b.build()


def extremes_down(
    outer: int, rows: int, columns: int, *, op: str, chip: Chip, dtype: str = "float32",
    cores: int = 1,
) -> Program:  # fmt: skip
    """values[o, r, c] = the largest or smallest of in[o, : r + 1, c]; index: where it is last."""
    d = _Down(f"running {op}", outer, rows, columns, cores)
    b = d.b
    source = d.whole("in", dtype, Role.INPUT)
    values, index = d.whole("values", dtype, Role.OUTPUT), d.whole("index", "int32", Role.OUTPUT)
    data, best, hit, where = (
        b.sbuf(n, d.size, t, slots=2)
        for n, t in (("data", dtype), ("best", "float32"), ("hit", "float32"), ("where", "float32"))
    )
    order, place = (b.sbuf(n, d.size, "float32") for n in ("order", "place"))
    states = [b.sbuf(n, d.count, "float32", slots=2) for n in ("last value", "last place")]
    first = b.sbuf("first row", 1, "float32", slots=2)
    d.order(order, 1)
    for tile in d.tiles():
        b.fresh(*states, first)
        value, at = (t.rows(tile.parts, tile.wide) for t in states)
        row = first.rows(tile.parts, 1)
        for to, start in ((value, UNITS[op]), (at, 0.0), (row, 0.0)):
            b.emit("memset", to, value=start)
        for r0, some in d.groups():
            b.fresh(data, best, hit, where)
            x, y, hits, places = (d.box(t, tile, some) for t in (data, best, hit, place))
            d.load(data, source, tile, r0, some)
            d.chain(best, value, data, tile, some, op)
            b.emit("tensor_tensor", hits, x, y, op="equal")
            b.emit("tensor_scalar", places, d.box(order, tile, some, pitch=d.count), row, op0="add")
            b.emit("tensor_tensor", hits, hits, places, op="multiply")
            d.chain(where, at, hit, tile, some, "max")
            d.store(values, best, tile, r0, some)
            d.store(index, where, tile, r0, some)
            b.emit("tensor_scalar", row, row, op0="add", imm0=float(some))
    return b.build()


def logarithms_down(
    outer: int, rows: int, columns: int, *, chip: Chip, dtype: str = "float32", cores: int = 1
) -> Program:
    """out[o, r, c] = log(exp(in[o, 0, c]) + ... + exp(in[o, r, c])): sums of exp(x - m), with m the
    largest so far, cut to finite numbers, each times exp(the m before - m).
    """
    d = _Down("cumulate_exp", outer, rows, columns, cores)
    b = d.b
    source, out = d.whole("in", dtype, Role.INPUT), d.whole("out", dtype, Role.OUTPUT)
    data, done = (b.sbuf(n, d.size, dtype, slots=2) for n in ("data", "done"))
    top, power, fade, total = (
        b.sbuf(n, d.size, "float32", slots=2) for n in ("top", "power", "fade", "total")
    )
    states = [b.sbuf(n, d.count, "float32", slots=2) for n in ("largest", "sum")]
    before = b.sbuf("before", d.count, "float32", slots=2)
    for tile in d.tiles():
        b.fresh(*states)
        largest, sums = (t.rows(tile.parts, tile.wide) for t in states)
        b.emit("memset", largest, value=LEAST)
        b.emit("memset", sums, value=0.0)
        for r0, some in d.groups():
            b.fresh(data, done, top, power, fade, total, before)
            x, to, m, p, f, s = (
                d.box(t, tile, some) for t in (data, done, top, power, fade, total)
            )
            d.load(data, source, tile, r0, some)
            then = before.rows(tile.parts, tile.wide)
            b.emit("tensor_scalar", then, largest, op0="min", imm0=-LEAST)
            d.chain(top, largest, data, tile, some, "max")
            b.emit("tensor_scalar", m, m, op0="min", imm0=-LEAST)
            b.emit("tensor_tensor", p, x, m, op="subtract")
            b.emit("activation", p, p, op="exp")
            first, now = d.row(fade, tile, 0), d.row(top, tile, 0)
            b.emit("tensor_tensor", first, then, now, op="subtract")
            if some > 1:
                faded, now = (d.box(t, tile, some - 1, first=1) for t in (fade, top))
                b.emit("tensor_tensor", faded, d.box(top, tile, some - 1), now, op="subtract")
            b.emit("activation", f, f, op="exp")
            d.chain(total, sums, power, tile, some, "add", fade)
            b.emit("activation", s, s, op="log")
            b.emit("tensor_tensor", to, s, m, op="add")
            d.store(out, done, tile, r0, some)
    return b.build()


def largest_down(
    outer: int, rows: int, columns: int, *, sign: float, chip: Chip, dtype: str = "float32",
    cores: int = 1,
) -> Program:  # fmt: skip
    """values[o, c] = the largest (or, with sign -1, smallest) of in[o, :, c], index: its first."""
    d = _Down("largest", outer, rows, columns, cores)
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
    d: _Down, tile: Tile, some: int, work: tuple[Buffer, Buffer, Buffer],
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
