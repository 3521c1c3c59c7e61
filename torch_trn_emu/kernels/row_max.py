"""The largest value of every long row and where it is first.

A partition has a row, or a piece of one. A pass over it gives the largest of each of its chunks;
max8 and nc_find_index8 work on those. The chunk that has the largest is then brought from memory
again and searched. Pieces of a row are as long as each other and may overlap by a few elements;
what they found comes together on a partition of the row.
"""

from collections.abc import Iterator
from math import ceil, inf

from ..chip import Chip
from ..isa import Access, Affine, Builder, Program, Role
from .entries import integers
from .limits import WIDE, P, evenly
from .pieces import beside, to_pieces
from .sort_keys import SEARCHED

__all__ = ["LEAST", "largest_of_rows"]

CHUNK = 128  # elements (chosen: a run of 512 bytes has DMA's full rate)
MOST = 16384  # elements that max8 reads (documented)
LEAST = 8 * CHUNK  # elements of a partition: max8 gives eight


def largest_of_rows(
    rows: int, columns: int, *, sign: float, chip: Chip, dtype: str = "float32", cores: int = 1,
    pieces: int = 1,
) -> Program:  # fmt: skip
    """values[r] = the largest of in[r, :] * sign, times sign; index[r] = where it is first.

    Each piece has at least LEAST elements.
    """
    rows = ceil(rows / cores)
    b = Builder(f"largest {rows}x{columns}", cores=cores)
    return (_OfPieces if pieces > 1 else _Largest)(b, rows, columns, sign, dtype, pieces).build()


class _Largest:
    """A row on each partition.

    length  elements of a partition, `step` from one piece of a row to the next
    """

    def __init__(
        self, b: Builder, rows: int, columns: int, sign: float, dtype: str, pieces: int
    ) -> None:
        self.b, self.rows, self.columns, self.sign = b, rows, columns, sign
        self.pieces, self.step = pieces, columns // pieces
        self.length = columns - (pieces - 1) * self.step
        self.chunk = CHUNK * ceil(self.length / (CHUNK * MOST))
        self.chunks = ceil(self.length / self.chunk)
        self.wide = evenly(self.length, max(WIDE, self.chunk), self.chunk)
        self.turned = sign != 1 or dtype not in SEARCHED  # what is searched is made first
        held = dtype if dtype in SEARCHED else "float32"
        self.source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
        self.values = b.hbm("values", (rows, 1), dtype, Role.OUTPUT)
        self.index = b.hbm("index", (rows, 1), "int32", Role.OUTPUT)
        self.data = b.sbuf("data", self.wide, dtype, slots=2)
        self.best = b.sbuf("best of chunks", self.chunks, held, slots=2)
        self.there = b.sbuf("its chunk", self.chunk, dtype, slots=2)
        self.keys, self.searched = self.best, self.there
        if sign != 1:
            self.keys = b.sbuf("keys of chunks", self.chunks, "float32", slots=2)
        if self.turned:
            self.searched = b.sbuf("keys of its chunk", self.chunk, "float32", slots=2)
        self.eight = b.sbuf("eight", 8, "float32", slots=2)
        self.which, self.where = (b.sbuf(n, 8, "int32", slots=2) for n in ("which", "where"))
        self.start, self.number, self.place = (
            b.sbuf(n, 1, "int32", slots=2) for n in ("start", "number", "place")
        )
        self.value = b.sbuf("value", 1, dtype, slots=2)
        self.first = b.sbuf("first element", 1, "int32")

    def build(self) -> Program:
        b = self.b
        self._firsts()
        for r0, size in b.tiles(self.rows, P // self.pieces):
            b.fresh(*{self.best, self.there, self.keys, self.searched}, self.eight, self.which)
            b.fresh(self.where, self.start, self.number, self.place, self.value)
            self._reduce(r0, size)
            self._search(r0, size)
            self._finish(r0, size)
        return b.build()

    def _firsts(self) -> None:
        """Where in the tile's rows each partition begins."""
        self.b.emit("iota", self.first.rows(P, 1), channel=self.columns, step=0, base=0)

    def _reduce(self, r0: Affine, size: int) -> None:
        """The best of every chunk, of which the last may lack some elements."""
        b, parts = self.b, size * self.pieces
        for c0, count in b.tiles(self.length, self.wide):
            b.fresh(self.data)
            lines = (self.columns, size), (self.step, self.pieces), (1, count)
            b.load(
                self.data.rows(parts, count),
                self.source.box(*lines, at=r0 * self.columns + c0),
            )
            first = c0.divided(self.chunk)
            for at, of, each in self._parts(count):
                pattern = ((self.wide, parts), (each, of), (1, each))
                x = self.data.box(*pattern, at=at * self.chunk)
                to = self.best.rows(parts, of, first + at)
                b.emit("tensor_reduce", to, x, op="max" if self.sign > 0 else "min")
        if self.sign != 1:
            keys, best = (t.rows(parts, self.chunks) for t in (self.keys, self.best))
            b.emit("tensor_scalar", keys, best, op0="multiply", imm0=self.sign)

    def _parts(self, count: int) -> Iterator[tuple[int, int, int]]:
        """The number of the first chunk, how many, and elements of each."""
        full, rest = divmod(count, self.chunk)
        if full:
            yield 0, full, self.chunk
        if rest:
            yield full, 1, rest

    def _search(self, r0: Affine, size: int) -> None:
        """The largest of each partition comes first in `eight`, and `place` is where it lies."""
        b, parts = self.b, size * self.pieces
        eight, which, where = (t.rows(parts, 8) for t in (self.eight, self.which, self.where))
        start, number, place, first = (
            t.rows(parts, 1) for t in (self.start, self.number, self.place, self.first)
        )
        keys, last = self.keys.rows(parts, self.chunks), float(self.length - self.chunk)
        b.emit("max8", eight, keys)
        b.emit("nc_find_index8", which, keys, eight)
        # The last chunk begins early enough to be a whole one.
        b.emit("tensor_scalar", start, self.which.rows(parts, 1), op0="multiply",
               imm0=float(self.chunk), op1="min", imm1=last)  # fmt: skip
        integers(b, "tensor_tensor", number, start, first, op="add")
        there, searched = (t.rows(parts, self.chunk) for t in (self.there, self.searched))
        places, at = (1, size * self.columns - self.chunk + 1), r0 * self.columns
        table = self.source.box(places, (1, self.chunk), at=at)
        b.emit("dma_gather", there, table, number, queue="gather")
        if self.turned:
            b.emit("activation", searched, there, op="copy", scale=self.sign)
        b.emit("nc_find_index8", where, searched, eight)
        b.emit("tensor_tensor", place, start, self.where.rows(parts, 1), op="add")

    def _finish(self, r0: Affine, size: int) -> None:
        self._store(r0, size, self.eight.rows(size, 1), self.place.rows(size, 1))

    def _store(self, r0: Affine, size: int, key: Access, place: Access) -> None:
        b, value = self.b, self.value.rows(size, 1)
        b.emit("tensor_scalar", value, key, op0="multiply", imm0=self.sign)
        b.store(self.values.rows(size, 1, r0), value)
        b.store(self.index.rows(size, 1, r0), place)


class _OfPieces(_Largest):
    """A row's pieces on partitions beside each other."""

    def __init__(
        self, b: Builder, rows: int, columns: int, sign: float, dtype: str, pieces: int
    ) -> None:
        super().__init__(b, rows, columns, sign, dtype, pieces)
        self.start_in_row = b.sbuf("start in row", 1, "int32")
        self.candidates = b.sbuf("candidates", max(8, pieces), "float32", slots=2)
        self.places = b.sbuf("places", pieces, "int32", slots=2)
        self.top, self.of = (
            b.sbuf(n, 8, t, slots=2) for n, t in (("top", "float32"), ("of", "int32"))
        )
        self.picked = b.sbuf("picked", 8, "int32", slots=2)

    def _firsts(self) -> None:
        """Made in one partition, then spread."""
        b, pieces, most = self.b, self.pieces, min(self.rows, P // self.pieces)
        in_row, of_row = (b.sbuf(n, k, "int32") for n, k in (("starts", pieces), ("rows", most)))
        b.emit("iota", in_row.rows(1, pieces), channel=0, step=self.step, base=0)
        b.emit("iota", of_row.rows(1, most), channel=0, step=self.columns, base=0)
        here, first = (t.rows(most * pieces, 1) for t in (self.start_in_row, self.first))
        to_pieces(b, self.start_in_row, in_row, most, pieces)
        each = of_row.box((most, 1), (1, most), (0, pieces))
        b.emit("dma_copy", first, each, queue="join")
        integers(b, "tensor_tensor", first, first, here, op="add")

    def _finish(self, r0: Affine, size: int) -> None:
        """The largest of what the pieces of a row gave."""
        b, pieces, parts = self.b, self.pieces, size * self.pieces
        b.fresh(self.candidates, self.places, self.top, self.of, self.picked)
        place, here = self.place.rows(parts, 1), self.start_in_row.rows(parts, 1)
        integers(b, "tensor_tensor", place, place, here, op="add")
        held = self.candidates.rows(size, max(8, pieces))
        if pieces < 8:
            b.emit("memset", held, value=-inf)
        for whole, part in ((self.candidates, self.eight), (self.places, self.place)):
            beside(b, whole, part.rows(parts, 1), size)
        top, of = (t.rows(size, 8) for t in (self.top, self.of))
        b.emit("max8", top, held)
        b.emit("nc_find_index8", of, held, top)
        places, first = self.places.rows(size, pieces), self.of.rows(size, 1)
        picked = self.picked.rows(size, 1)
        b.emit("nc_n_gather", picked, places, first)
        self._store(r0, size, self.top.rows(size, 1), picked)
