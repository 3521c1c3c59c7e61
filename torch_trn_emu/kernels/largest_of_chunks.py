"""The largest of every row, eight at a time: of its chunks, and of what they give as one row.

A partition has a row, or a piece of one of few rows, and works through it tile by tile. What pieces
give comes together in one partition for each row. Pieces of all rows are one transfer: as long as
each other, they overlap where the columns do not divide evenly. What the next piece has too is less
than all, in all but the last of a row.
"""

from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from .limits import P, evenly
from .pieces import beside, to_pieces
from .sort_keys import PADDING, SEARCHED, Halves, Keys

__all__ = ["Largest", "eights"]

Found = tuple[Buffer, Buffer]  # keys, and where they are


def eights(k: int) -> int:
    """What is found of k: a multiple of eight."""
    return 8 * ceil(k / 8)


class Largest:
    def __init__(
        self, b: Builder, rows: int, columns: int, stored: range, sign: float, chip: Chip,
        dtype: str, pieces: int, most: int, *, nan: bool = False,
    ) -> None:  # fmt: skip
        """A partition has one of a row's `pieces`, and works on `most` columns of it at once.

        nan  numbers may be NaN, which comes where torch has it
        """
        self.b, self.rows, self.columns, self.pieces = b, rows, columns, pieces
        self.first, self.k, self.each = stored.start, len(stored), eights(stored.stop)
        self.source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
        self.values = b.hbm("values", (rows, self.k), dtype, Role.OUTPUT)
        self.index = b.hbm("index", (rows, self.k), "int32", Role.OUTPUT)
        self.step, self.over = divmod(columns, pieces)
        self.wide = self.step + self.over
        self.tile = evenly(self.wide, most)  # columns that it works on
        self.held = max(self.tile, self.each)
        self.tiles = range(0, self.wide, self.tile)  # where those of a piece begin
        self.raw = b.sbuf("raw", self.tile, dtype, slots=2)
        shortest = min(self.tile, self.wide % self.tile or self.wide)
        # Something is taken out, filled up or there twice.
        bounded = not self.each == 8 <= shortest or self.over > 0
        plain = not bounded and sign == 1 and dtype in SEARCHED and not nan
        self.keys: Keys | Halves = Halves(b, sign, chip, bounded=bounded, same=plain)
        self.spare = self.raw
        if nan:
            self.keys = Keys(b, sign, dtype)
            self.spare = b.sbuf("is NaN", max(self.tile, self.k), "float32")
        self.data = self.raw if plain else b.sbuf("data", self.held, "float32", slots=2)
        slots = 1 if len(self.tiles) > 1 == pieces else 2
        self.of_tiles = self._found("of tiles", len(self.tiles) * self.each, slots)
        if len(self.tiles) > 1:
            self.of_piece, self.there = self._picked("of a piece")
        if pieces > 1:
            self.of_pieces = self._found("of pieces", pieces * self.each, 1)
            self.of_row, self.which = self._picked("of a row")
            self.start, self.limit = (b.sbuf(n, 1, "float32") for n in ("start", "limit"))
        self.stored = b.sbuf("stored", self.k, dtype, slots=2)

    def _found(self, name: str, count: int, slots: int) -> Found:
        kept, places = name, f"places {name}"
        return (self.b.sbuf(kept, count, "float32", slots=slots),
                self.b.sbuf(places, count, "int32", slots=slots))  # fmt: skip

    def _picked(self, name: str) -> tuple[Found, Buffer]:
        """For what is chosen again, and for which it was."""
        return self._found(name, self.each, 2), self.b.sbuf(f"{name}: of", self.each, "int32",
                                                            slots=2)  # fmt: skip

    def build(self) -> Program:
        b, pieces = self.b, self.pieces
        most = min(self.rows, P // pieces)  # rows at once
        if pieces > 1:
            self._starts(most)
        for r0, size in b.tiles(self.rows, most):
            b.fresh(*self.of_tiles, self.stored)
            for k, c0 in enumerate(self.tiles):
                self._tile(r0, size, k * self.each, c0)
            found, parts = self.of_tiles, size * pieces
            if len(self.tiles) > 1:
                found = self._largest_of(found, parts, self.of_piece, self.there)
            if pieces > 1:
                self._join(size, parts, found)
                found = self._largest_of(self.of_pieces, size, self.of_row, self.which)
            self._store(r0, size, *found)
        return b.build()

    def _starts(self, most: int) -> None:
        """Where each piece begins, and what its last columns are cut to."""
        b, pieces = self.b, self.pieces
        line = b.sbuf("first columns", pieces, "float32")
        b.emit("iota", line.rows(1, pieces), channel=0, step=self.step, base=0)
        to_pieces(b, self.start, line, most, pieces)
        if self.over:  # more than all keys only in the last piece
            line = b.sbuf("limits", pieces, "float32")
            b.emit("memset", line.rows(1, pieces), value=-PADDING)
            b.emit("memset", line.rows(1, 1, pieces - 1), value=PADDING)
            to_pieces(b, self.limit, line, most, pieces)

    def _tile(self, r0: Affine, size: int, at: int, c0: int) -> None:
        """The largest of the columns of each piece from c0 on, counted in columns of the piece."""
        b, count, parts = self.b, min(self.tile, self.wide - c0), size * self.pieces
        b.fresh(*{self.raw, self.data})
        raw, data = (t.rows(parts, count) for t in (self.raw, self.data))
        lines = (self.columns, size), (self.step, self.pieces), (1, count)
        b.load(raw, self.source.box(*lines, at=r0 * self.columns + c0))
        held = max(count, self.each)
        if held > count:
            b.emit("memset", self.data.rows(parts, held), value=-PADDING)
        self.keys.make(data, raw, self.spare.rows(parts, count))
        first = max(0, self.step - c0)
        if first < count:
            twice = self.data.rows(parts, count - first, first)
            b.emit("tensor_scalar", twice, twice, self.limit.rows(parts, 1), op0="min")
        self._rounds(self.data.rows(parts, held), self.of_tiles, at)
        if c0:
            found = self.of_tiles[1].rows(parts, self.each, at)
            b.emit("tensor_scalar", found, found, op0="add", imm0=float(c0))

    def _rounds(self, whole: Access, found: Found, at: int = 0) -> None:
        """The largest eight, taken out, until there are enough.

        Of a single eight, equal elements are found in the order in which they are.
        """
        b, size = self.b, whole.partitions
        if self.each == 8:
            eight, where = (t.rows(size, 8, at) for t in found)
            b.emit("max8", eight, whole)
            b.emit("nc_find_index8", where, whole, eight)
            return
        with b.loop(self.each // 8) as turn:
            eight, where = (t.rows(size, 8, turn * 8 + at) for t in found)
            b.emit("max8", eight, whole)
            b.emit("nc_match_replace8", (whole, where), whole, eight, imm=-PADDING)

    def _largest_of(self, found: Found, parts: int, to: Found, which: Buffer) -> Found:
        """The largest of what was found, and where those are."""
        b, (merged, picked) = self.b, to
        b.fresh(merged, which, picked)
        keys, places = (t.rows(parts, t.row_elements) for t in found)
        self._rounds(keys, (merged, which))
        there = which.rows(parts, self.each)
        b.emit("nc_n_gather", picked.rows(parts, self.each), places, there)
        return to

    def _join(self, size: int, parts: int, found: Found) -> None:
        """The candidates of a row's pieces beside each other, counted in columns of the row."""
        b, each = self.b, self.each
        b.fresh(*self.of_pieces)
        there = found[1].rows(parts, each)
        b.emit("tensor_scalar", there, there, self.start.rows(parts, 1), op0="add")
        for part, whole in zip(found, self.of_pieces, strict=True):
            beside(b, whole, part.rows(parts, each), size)

    def _store(self, r0: Affine, size: int, best: Buffer, places: Buffer) -> None:
        b, at = self.b, r0 * self.k
        to, found = self.stored.rows(size, self.k), best.rows(size, self.k, self.first)
        self.keys.undo(to, found, self.spare.rows(size, self.k))
        b.store(self.values.rows(size, self.k, at), to)
        b.store(self.index.rows(size, self.k, at), places.rows(size, self.k, self.first))
