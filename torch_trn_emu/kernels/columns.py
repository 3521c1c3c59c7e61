"""Columns of [outer, rows, columns] on partitions: each has all rows of its columns, or some at a
time.

Where blocks of [rows, columns] are short, a partition has several. Others share the columns, or the
outer dimension where that fills more partitions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from ..isa import Access, Affine, Buffer, Builder, Engine, Index, Role, affine
from .limits import BANK, START, P, evenly
from .reduce_leading import share_of

__all__ = ["APART", "Columns", "Tile", "are_short"]

TOGETHER = 2048  # elements of a partition that are worked on at once (chosen)
APART = TOGETHER + 1  # as the least number of blocks of a partition: it has one
STEP = 400  # elements that a partition works through while an instruction starts (chosen)


def are_short(outer: int, rows: int, columns: int, least: int = 8) -> bool:
    """Whether there are several blocks for each partition, and it holds at least `least`."""
    return not least or (outer > P and least * rows * columns <= TOGETHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """`wide` columns on each of `parts` partitions, of several blocks or of one, and where they are
    in memory.

    left            columns of the last partition, if it has fewer; the others are zeros
    first, pitch    of [outer, rows, columns]: the first element, and from a partition's to the next
    kept, distance  the same of [outer, columns]
    """

    parts: int
    wide: int
    left: int = 0
    first: Affine = Affine()
    pitch: int = 0
    kept: Affine = Affine()
    distance: int = 0


class Columns:
    """One core's [outer, rows, columns]; a partition has at most `count` columns in a tile.

    longest   columns of one block that a partition has at most
    together  elements that are worked on at once
    least     short blocks that a partition must hold to have several; 0: whole ones in any case
    """

    def __init__(
        self, b: Builder, outer: int, rows: int, columns: int, *, longest: int = BANK,
        together: int = 0, least: int = 8,
    ) -> None:  # fmt: skip
        self.b, most = b, together or TOGETHER
        self.outer, self.columns = share_of(outer, columns, b.cores)
        self.rows, self.block = rows, rows * self.columns
        self.short = are_short(self.outer, rows, self.columns, least)
        self.by_outer = self._work(1, self.outer) < self._work(self.outer, self.columns)
        if self.short:
            self.count = self.columns * _run(self.outer, most // self.block)
        else:
            self.count = (
                evenly(self.columns, longest) if self.by_outer else _run(self.columns, longest)
            )
        self.together = rows if self.short else max(1, min(rows, most // self.count))
        self.size = self.together * self.count

    def _work(self, times: int, lines: int) -> int:
        """Elements of a row that a partition passes over, `lines` of them on partitions."""
        columns = self.outer * self.columns // (times * lines)
        each = ceil(lines / P) * columns
        return times * (each + STEP * ceil(each / BANK))

    def whole(self, name: str, dtype: str, role: Role) -> Buffer:
        return self.b.hbm(name, (self.outer * self.rows, self.columns), dtype, role)

    def single(self, name: str, dtype: str) -> Buffer:
        """A result with one row of columns."""
        return self.b.hbm(name, (self.outer, self.columns), dtype, Role.OUTPUT)

    def tiles(self) -> Iterator[Tile]:
        b, columns, block = self.b, self.columns, self.block
        if self.short:
            for o, parts, some, left in self._runs(self.outer, self.count // columns):
                wide = some * columns
                yield Tile(parts=parts, wide=wide, left=left * columns, first=o * block,
                           pitch=some * block, kept=o * columns, distance=wide)  # fmt: skip
        elif self.by_outer:
            for o, parts in b.tiles(self.outer, P):
                for c, wide in b.tiles(columns, self.count):
                    yield Tile(parts=parts, wide=wide, first=o * block + c, pitch=block,
                               kept=o * columns + c, distance=columns)  # fmt: skip
        else:
            with b.loop(self.outer) as o:
                for c, parts, wide, left in self._runs(columns, self.count):
                    yield Tile(parts=parts, wide=wide, left=left, first=o * block + c, pitch=wide,
                               kept=o * columns + c, distance=wide)  # fmt: skip

    def _runs(self, columns: int, run: int) -> Iterator[tuple[Affine, int, int, int]]:
        """The first column, the partitions, their columns, and the last one's if it has fewer."""
        full = columns // (P * run) * P * run
        for first, _ in self.b.tiles(full, P * run):
            yield first, P, run, 0
        whole, left = divmod(columns - full, run)
        if whole:
            yield Affine(full), whole + (left > 0), run, left
        elif left:
            yield Affine(full), 1, left, 0

    def groups(self) -> Iterator[tuple[Affine, int]]:
        """The first row, and how many are worked on at once."""
        yield from self.b.tiles(self.rows, self.together)

    # --- between memory and SBUF ---

    def load(self, buffer: Buffer, hbm: Buffer, tile: Tile, r0: Affine, some: int) -> Access:
        """Rows of the tile's columns; gives where they are."""
        if tile.left:
            first = (tile.parts - 1) // START * START
            pattern = (
                (buffer.row_elements, tile.parts - first),
                *self._inside(tile, some, tile.wide),
            )
            zeros = buffer.box(*pattern, at=first * buffer.row_elements)
            self.b.emit("memset", zeros, engine=Engine.GPSIMD, value=0.0)
        for here, there in self._moves(buffer, hbm, tile, r0, some):
            self.b.load(here, there)
        return self.box(buffer, tile, some)

    def store(self, hbm: Buffer, buffer: Buffer, tile: Tile, r0: Affine, some: int) -> None:
        for here, there in self._moves(buffer, hbm, tile, r0, some):
            self.b.store(there, here)

    def keep(self, hbm: Buffer, buffer: Buffer, tile: Tile, each: int = 1) -> None:
        """One row of the tile's columns, or of `each` results of every column."""
        parts = tile.parts - (tile.left > 0)
        here = ((buffer.row_elements, parts), (1, tile.wide * each))
        there = ((tile.distance * each, parts), (1, tile.wide * each))
        place = hbm.box(*there, at=tile.kept * each)
        self.b.store(place, buffer.box(*here))
        if tile.left:
            pattern = ((1, tile.left * each),)
            at = (tile.kept + parts * tile.distance) * each
            place = hbm.box((1, 1), *pattern, at=at)
            self.b.store(place, self._part(buffer, tile, pattern))

    def _moves(
        self, buffer: Buffer, hbm: Buffer, tile: Tile, r0: Affine, some: int
    ) -> Iterator[tuple[Access, Access]]:
        """Transfers of the partitions that are full, and of the last if it is not."""
        at, parts = tile.first + r0 * self.columns, tile.parts - (tile.left > 0)
        here, there = self._inside(tile, some, tile.wide), self._there(some, tile.wide)
        yield (
            buffer.lanes(parts, *here),
            hbm.box((tile.pitch, parts), *there, at=at),
        )
        if tile.left:
            here, there = self._inside(tile, some, tile.left), self._there(some, tile.left)
            at += parts * tile.pitch
            yield (
                self._part(buffer, tile, here),
                hbm.box((1, 1), *there, at=at),
            )

    def _part(self, buffer: Buffer, tile: Tile, pattern: tuple[tuple[int, int], ...]) -> Access:
        """Of the last partition."""
        at = Affine((tile.parts - 1) * buffer.row_elements)
        return buffer.lanes(1, *pattern, at=at)

    def _inside(self, tile: Tile, some: int, wide: int) -> tuple[tuple[int, int], ...]:
        """`wide` columns of rows in a partition's part of SBUF."""
        return ((1, wide * self.rows),) if self.short else ((tile.wide, some), (1, wide))

    def _there(self, some: int, wide: int) -> tuple[tuple[int, int], ...]:
        """The same in memory."""
        return ((1, wide * self.rows),) if self.short else ((self.columns, some), (1, wide))

    # --- what instructions touch ---

    def _step(self, tile: Tile) -> int:
        """From a row to the next in SBUF."""
        return self.columns if self.short else tile.wide

    def _across(self, tile: Tile) -> tuple[tuple[int, int], ...]:
        """A row's columns, block by block."""
        if self.short:
            return (self.block, tile.wide // self.columns), (1, self.columns)
        return ((1, tile.wide),)

    def box(
        self, buffer: Buffer, tile: Tile, some: int, *, first: int = 0, pitch: int = 0
    ) -> Access:
        """Rows from `first` on in SBUF, where those of one block are `pitch` apart."""
        step = self._step(tile)
        *blocks, (_, columns) = self._across(tile)
        inside = ((1, some * columns),) if self.short else ((pitch or step, some), (1, columns))
        pattern = ((buffer.row_elements, tile.parts), *blocks, *inside)
        return buffer.box(*pattern, at=first * step)

    def by_column(self, buffer: Buffer, tile: Tile, some: int) -> Access:
        """The rows of each column come together."""
        pattern = (buffer.row_elements, tile.parts), *self._across(tile), (self._step(tile), some)
        return buffer.box(*pattern)

    def repeated(self, buffer: Buffer, tile: Tile, some: int) -> Access:
        """One row of columns as that of `some` rows."""
        *blocks, inside = self._across(tile)
        pairs = [(self.columns, n) for _, n in blocks]
        pattern = ((buffer.row_elements, tile.parts), *pairs, (0, some), inside)
        return buffer.box(*pattern)

    def row(self, buffer: Buffer, tile: Tile, r: Index) -> Access:
        pattern = (buffer.row_elements, tile.parts), *self._across(tile)
        return buffer.box(*pattern, at=affine(r) * self._step(tile))


def _run(columns: int, longest: int) -> int:
    """Columns of a partition, so that all partitions of as few tiles as possible have as many."""
    return ceil(columns / (P * ceil(columns / (P * longest))))
