"""The largest of every row, eight at a time: of its chunks, and of what they give as one row."""

from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from .limits import P, evenly
from .sort_keys import PADDING, SEARCHED, Keys, halved

__all__ = ["Largest", "LargestOfFew", "eights"]


def eights(k: int) -> int:
    """What is found of k: a multiple of eight."""
    return 8 * ceil(k / 8)


class Largest:
    def __init__(
        self, b: Builder, rows: int, columns: int, stored: range, sign: float, chip: Chip,
        dtype: str, wide: int, most: int, *, pieces: int = 0, nan: bool = False,
    ) -> None:  # fmt: skip
        """A partition has `wide` columns of a row at once, and works on `most` of them.

        pieces  of a row, if they are on partitions beside each other
        nan     numbers may be NaN, which comes where torch has it
        """
        self.b, self.rows, self.columns, self.sign = b, rows, columns, sign
        self.chip = chip
        self.first, self.k = stored.start, len(stored)
        self.source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
        self.values = b.hbm("values", (rows, self.k), dtype, Role.OUTPUT)
        self.index = b.hbm("index", (rows, self.k), "int32", Role.OUTPUT)
        self.each, self.wide = eights(stored.stop), wide
        self.chunks = pieces or ceil(columns / self.wide)
        self.tile = evenly(wide, most)  # columns that it works on
        self.held = max(self.tile, self.each)
        self.raw = b.sbuf("raw", self.tile, dtype, slots=2)
        last = wide if pieces else columns % wide or wide
        shortest = min(self.tile, wide % self.tile or wide, last)
        # Something is taken out, filled up or there twice.
        self.bounded = not self.each == 8 <= shortest or pieces * wide > columns
        self.plain = not self.bounded and sign == 1 and dtype in SEARCHED and not nan
        self.keys = Keys(b, sign, dtype) if nan else None
        if nan:
            self.spare = b.sbuf("is NaN", max(self.tile, self.k), "float32")
        self.data = self.raw if self.plain else b.sbuf("data", self.held, "float32", slots=2)
        total = self.chunks * self.each
        slots = 2 if self.chunks == 1 else 1
        self.found = b.sbuf("found", total, "float32", slots=slots)
        self.places = b.sbuf("places", total, "int32", slots=slots)
        if self.chunks > 1:
            self.merged = b.sbuf("merged", self.each, "float32", slots=2)
            self.of, self.picked = (
                b.sbuf(n, self.each, "int32", slots=2) for n in ("of", "picked")
            )
            self.column = b.sbuf("first column", 1, "float32", slots=2)
        self.stored = b.sbuf("stored", self.k, dtype, slots=2)

    def build(self) -> Program:
        b = self.b
        for r0, size in b.tiles(self.rows, P):
            b.fresh(self.found, self.places, self.stored)
            if self.chunks > 1:
                b.fresh(self.column)
                b.emit("memset", self.column.rows(size, 1), value=0.0)
            for number, c0, count in b.parts(self.columns, self.wide):
                self._chunk(r0, number, c0, size, count)
            self._store(r0, size)
        return b.build()

    def _store(self, r0: Affine, size: int) -> None:
        b, at = self.b, r0 * self.k
        best, places = self._merge(size) if self.chunks > 1 else (self.found, self.places)
        to, found = self.stored.rows(size, self.k), best.rows(size, self.k, self.first)
        if self.keys:
            self.keys.undo(to, found, self.spare.rows(size, self.k))
        else:
            scale = 1.0 if self.plain else 2 * self.sign
            b.emit("tensor_scalar", to, found, op0="multiply", imm0=scale)
        b.store(self.values.rows(size, self.k, at), to)
        b.store(self.index.rows(size, self.k, at), places.rows(size, self.k, self.first))

    def _chunk(self, r0: Affine, number: Affine, c0: Affine, size: int, count: int) -> None:
        """The largest of a chunk, counted in columns of the row."""
        b, held = self.b, max(count, self.each)
        b.fresh(*{self.raw, self.data})
        raw = self.raw.rows(size, count)
        b.load(raw, self.source.rows(size, count, r0 * self.columns + c0))
        if held > count:
            b.emit("memset", self.data.rows(size, held), value=-PADDING)
        self._key(self.data.rows(size, count), raw)
        start = number * self.each
        self._rounds(self.data, held, size, self.found, self.places, start)
        if self.chunks > 1:
            found, column = (
                self.places.rows(size, self.each, start),
                self.column.rows(size, 1),
            )
            b.emit("tensor_scalar", found, found, column, op0="add")
            b.emit("tensor_scalar", column, column, op0="add", imm0=float(self.wide))

    def _key(self, to: Access, source: Access) -> None:
        if self.keys:
            self.keys.make(to, source, self.spare.rows(to.partitions, to.free))
        elif not self.plain:
            bounded = self.bounded
            halved(self.b, to, source, sign=self.sign, bounded=bounded, chip=self.chip)

    def _rounds(
        self, data: Buffer, count: int, size: int, found: Buffer, places: Buffer, start: Affine
    ) -> None:
        """The largest eight, taken out, until there are enough.

        Of a single eight, equal elements are found in the order in which they are.
        """
        b, whole = self.b, data.rows(size, count)
        if self.each == 8:
            eight, where = found.rows(size, 8, start), places.rows(size, 8, start)
            b.emit("max8", eight, whole)
            b.emit("nc_find_index8", where, whole, eight)
            return
        with b.loop(self.each // 8) as turn:
            eight = found.rows(size, 8, start + turn * 8)
            b.emit("max8", eight, whole)
            where = places.rows(size, 8, start + turn * 8)
            b.emit("nc_match_replace8", (whole, where), whole, eight, imm=-PADDING)

    def _merge(self, size: int) -> tuple[Buffer, Buffer]:
        """The largest of what the chunks gave, and the columns that those came from."""
        found = self.merged, self.of, self.picked
        return self._largest_of(self.found, self.places, self.chunks * self.each, size, found)

    def _largest_of(
        self, values: Buffer, places: Buffer, total: int, size: int,
        made: tuple[Buffer, Buffer, Buffer],
    ) -> tuple[Buffer, Buffer]:  # fmt: skip
        b, (merged, of, picked) = self.b, made
        b.fresh(merged, of, picked)
        self._rounds(values, total, size, merged, of, Affine())
        columns, there = places.rows(size, total), of.rows(size, self.each)
        b.emit("nc_n_gather", picked.rows(size, self.each), columns, there)
        return merged, picked


class LargestOfFew(Largest):
    """Few rows: each is cut over several partitions, whose largest come together in one.

    Pieces of all rows are one transfer: as long as each other, they overlap where the columns do
    not divide evenly. What the next piece has too is less than all, in all but the last of a row.
    """

    def __init__(
        self, b: Builder, rows: int, columns: int, stored: range, sign: float, chip: Chip,
        dtype: str, wide: int, most: int, *, nan: bool = False,
    ) -> None:  # fmt: skip
        pieces = ceil(columns / wide)
        self.step, over = divmod(columns, pieces)
        super().__init__(
            b, rows, columns, stored, sign, chip, dtype, self.step + over, most, pieces=pieces,
            nan=nan,
        )  # fmt: skip
        self.most = min(rows, P // pieces)  # rows at once
        self.tiles = list(range(0, self.wide, self.tile))  # where those of a piece begin
        total = len(self.tiles) * self.each
        self.of_tiles = b.sbuf("of tiles", total, "float32", slots=2)
        self.places_there = b.sbuf("places there", total, "int32", slots=2)
        if len(self.tiles) > 1:
            self.made = (
                b.sbuf("of parts", self.each, "float32", slots=2),
                b.sbuf("of which tile", self.each, "int32", slots=2),
                b.sbuf("places in parts", self.each, "int32", slots=2),
            )
        self.start = b.sbuf("start", 1, "float32")
        if over:
            self.limit = b.sbuf("limit", 1, "float32")

    def build(self) -> Program:
        b, pieces = self.b, self.chunks
        line = b.sbuf("first columns", pieces, "float32")
        b.emit("iota", line.rows(1, pieces), channel=0, step=self.step, base=0)
        self._spread(self.start, line)
        if self.wide > self.step:  # more than all keys only in the last piece
            line = b.sbuf("limits", pieces, "float32")
            b.emit("memset", line.rows(1, pieces), value=-PADDING)
            b.emit("memset", line.rows(1, 1, pieces - 1), value=PADDING)
            self._spread(self.limit, line)
        for r0, size in b.tiles(self.rows, self.most):
            b.fresh(self.found, self.places, self.stored, self.of_tiles, self.places_there)
            for k, c0 in enumerate(self.tiles):
                self._tile(r0, size, k * self.each, c0)
            found, parts = (self.of_tiles, self.places_there), size * pieces
            if len(self.tiles) > 1:
                found = self._largest_of(*found, len(self.tiles) * self.each, parts, self.made)
            self._join(size, parts, *found)
            self._store(r0, size)
        return b.build()

    def _spread(self, to: Buffer, line: Buffer) -> None:
        """What a line in one partition says of a row's pieces, to the partitions of all of them."""
        pieces = self.chunks
        of_all = line.box((pieces, 1), (0, self.most), (1, pieces))
        self.b.emit("dma_copy", to.rows(self.most * pieces, 1), of_all, queue="join")

    def _tile(self, r0: Affine, size: int, at: int, c0: int) -> None:
        """The largest of the columns of each piece from c0 on, counted in columns of the piece."""
        b, count, parts = self.b, min(self.tile, self.wide - c0), size * self.chunks
        b.fresh(*{self.raw, self.data})
        raw, data = (t.rows(parts, count) for t in (self.raw, self.data))
        lines = (self.columns, size), (self.step, self.chunks), (1, count)
        there = self.source.box(*lines, at=r0 * self.columns + c0)
        b.load(raw, there)
        held = max(count, self.each)
        if held > count:
            b.emit("memset", self.data.rows(parts, held), value=-PADDING)
        self._key(data, raw)
        first = max(0, self.step - c0)
        if first < count:
            twice = self.data.rows(parts, count - first, first)
            b.emit("tensor_scalar", twice, twice, self.limit.rows(parts, 1), op0="min")
        self._rounds(self.data, held, parts, self.of_tiles, self.places_there, Affine(at))
        if c0:
            found = self.places_there.rows(parts, self.each, at)
            b.emit("tensor_scalar", found, found, op0="add", imm0=float(c0))

    def _join(self, size: int, parts: int, values: Buffer, columns: Buffer) -> None:
        """The candidates of a row's pieces beside each other, counted in columns of the row."""
        b, pieces, each = self.b, self.chunks, self.each
        there = columns.rows(parts, each)
        b.emit("tensor_scalar", there, there, self.start.rows(parts, 1), op0="add")
        for part, whole in ((values, self.found), (columns, self.places)):
            to, source = whole.rows(size, pieces * each), part.rows(parts, each)
            b.emit("dma_copy", to, source, queue="join")
