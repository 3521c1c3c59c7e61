"""The largest of every one of many short rows, eight at a time: a partition has several rows.

A transfer brings rows that lie one after the other, and one stores what was found of them; only
max8 and the instruction that says where its eight were work on a row at a time.
"""

from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Engine, Program, Role
from .columns import Columns, Tile
from .limits import P
from .sort_keys import PADDING, SEARCHED, Halves, Keys

__all__ = ["eights_of_rows"]

TOGETHER = 2048  # elements of a partition's rows, if it has several (chosen)
MOST = 680  # of those rows, each of which has tiles of eight elements (chosen: they fit in SBUF)


def eights_of_rows(
    rows: int, columns: int, stored: range, *, sign: float, chip: Chip, dtype: str, cores: int = 1,
    nan: bool = False,
) -> Program:  # fmt: skip
    """values[r, :], index[r, :] = those `stored` of the ordered in[r, :] * sign, times sign, and
    where. A partition holds a row whole.

    nan  numbers may be NaN, which comes where torch has it
    """
    b = Builder(f"top {stored.stop} of {rows}x{columns}", cores=cores)
    together = max(min(TOGETHER, MOST * columns), columns)
    d = Columns(b, rows, columns, 1, together=together, least=0)
    return _Eights(d, columns, stored, sign, chip, dtype, nan).build()


class _Eights:
    def __init__(
        self, d: Columns, columns: int, stored: range, sign: float, chip: Chip, dtype: str,
        nan: bool,
    ) -> None:  # fmt: skip
        self.d, self.b, b = d, d.b, d.b
        self.columns = columns
        self.first, self.k = stored.start, len(stored)
        self.rounds = ceil(stored.stop / 8)
        self.each, self.held = 8 * self.rounds, max(8, columns)
        self.plain = (
            self.rounds == 1 and sign == 1 and columns >= 8 and dtype in SEARCHED and not nan
        )  # nothing is taken out, filled up or turned
        shape = (d.outer, self.k)
        self.source = d.whole("in", dtype, Role.INPUT)
        self.values = b.hbm("values", shape, dtype, Role.OUTPUT)
        self.index = b.hbm("index", shape, "int32", Role.OUTPUT)
        self.raw = b.sbuf("raw", d.size, dtype, slots=2)
        self.data = self.raw
        if not self.plain:
            self.data = b.sbuf("data", d.count * self.held, "float32", slots=2)
        # Of several rows, so that no instruction waits for what the one before put into a tile.
        self.left = self.data
        if self.rounds > 1 and d.count > 1:
            self.left = b.sbuf("left", d.count * self.held, "float32", slots=2)
        self.found = b.sbuf("found", d.count * self.each, "float32", slots=2)
        self.places = b.sbuf("places", d.count * self.each, "int32", slots=2)
        self.stored = b.sbuf("stored", d.count * self.k, dtype, slots=2)
        self.where = b.sbuf("where", d.count * self.k, "int32", slots=2)
        bounded = self.rounds > 1 or self.held > columns
        self.keys: Keys | Halves = Halves(b, sign, chip, bounded=bounded, same=self.plain)
        self.spare = self.raw
        if nan:
            self.keys = Keys(b, sign, dtype)
            self.spare = b.sbuf("is NaN", d.count * max(columns, self.k), "float32")

    def build(self) -> Program:
        b, d = self.b, self.d
        for tile in d.tiles():
            b.fresh(
                *{self.raw, self.data, self.left}, self.found, self.places, self.stored, self.where
            )
            d.load(self.raw, self.source, tile, Affine(), self.columns)
            if not self.plain:
                self._keys(tile)
            self._search(tile)
            self._store(tile)
        return b.build()

    def _of(self, buffer: Buffer, tile: Tile, each: int, count: int, at: int = 0) -> Access:
        """`count` of the `each` elements that every row of a tile has, from `at` on."""
        pattern = ((buffer.row_elements, tile.parts), (each, tile.wide), (1, count))
        return buffer.box(*pattern, at=at)

    def _keys(self, tile: Tile) -> None:
        """Half of what is compared, so that infinity is finite and more than what is filled in."""
        b = self.b
        if self.held > self.columns:
            pattern = ((self.data.row_elements, P), (1, self.data.row_elements))
            whole = self.data.box(*pattern)
            b.emit("memset", whole, engine=Engine.GPSIMD, value=-PADDING)
        keys = self._of(self.data, tile, self.held, self.columns)
        raw = self._of(self.raw, tile, self.columns, self.columns)
        self.keys.make(keys, raw, self._of(self.spare, tile, self.columns, self.columns))

    def _search(self, tile: Tile) -> None:
        """Of a single eight, equal elements are found in the order in which they are."""
        b = self.b
        if self.rounds == 1:  # an instruction does not wait for the one before
            with b.loop(tile.wide) as row:
                whole, eight, _ = self._row(self.data, tile, row, Affine())
                b.emit("max8", eight, whole)
            with b.loop(tile.wide) as row:
                whole, eight, where = self._row(self.data, tile, row, Affine())
                b.emit("nc_find_index8", where, whole, eight)
            return
        pairs, rest = divmod(self.rounds, 2)
        with b.loop(pairs) as pair:
            self._turn(tile, pair * 2, self.data, self.left)
            self._turn(tile, pair * 2 + 1, self.left, self.data)
        if rest:
            self._turn(tile, Affine(pairs * 2), self.data, self.left)

    def _turn(self, tile: Tile, turn: Affine, held: Buffer, left: Buffer) -> None:
        """The largest eight of each row of `held`, and the row without them."""
        b = self.b
        with b.loop(tile.wide) as row:
            whole, eight, _ = self._row(held, tile, row, turn)
            b.emit("max8", eight, whole)
        with b.loop(tile.wide) as row:
            whole, eight, where = self._row(held, tile, row, turn)
            less = self._part(left, tile, self.held, row * self.held)
            b.emit("nc_match_replace8", (less, where), whole, eight, imm=-PADDING)

    def _row(
        self, held: Buffer, tile: Tile, row: Affine, turn: Affine
    ) -> tuple[Access, Access, Access]:
        """A row, and where its largest eight of a turn go, and their places."""
        whole = self._part(held, tile, self.held, row * self.held)
        at = row * self.each + turn * 8
        eight, where = (self._part(t, tile, 8, at) for t in (self.found, self.places))
        return whole, eight, where

    def _part(self, buffer: Buffer, tile: Tile, count: int, at: Affine) -> Access:
        pattern = ((buffer.row_elements, tile.parts), (1, count))
        return buffer.box(*pattern, at=at)

    def _store(self, tile: Tile) -> None:
        b, d = self.b, self.d
        values, where = (self._of(t, tile, self.k, self.k) for t in (self.stored, self.where))
        found, places = (
            self._of(t, tile, self.each, self.k, self.first) for t in (self.found, self.places)
        )
        self.keys.undo(values, found, self._of(self.spare, tile, self.k, self.k))
        b.emit("tensor_copy", where, places)
        d.keep(self.values, self.stored, tile, self.k)
        d.keep(self.index, self.where, tile, self.k)
