"""Chunks of long rows, one a partition: of many rows at once, or many of one row; and rows that are
cut over partitions beside each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from ..isa import Access, Affine, Buffer, Builder
from .limits import P

__all__ = ["Piece", "beside", "cut_rows", "pieces", "to_pieces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`count` elements on each of `size` partitions: of as many rows, or along one row.

    row, at  the first partition's row, and where in the row its elements begin
    """

    row: Affine
    at: Affine = Affine()
    size: int
    count: int
    along: bool = False


def pieces(
    b: Builder, rows: int, wide: int, extent: int, begin: Callable[[], None] = lambda: None
) -> Iterator[Piece]:
    """Chunks of `wide` of the first `extent` elements of `rows` rows, on most partitions at once.

    begin  emits what comes before the pieces of a row, or of rows that go together
    """
    full, rest = divmod(extent, wide)
    if rows * ceil(full / P) < ceil(rows / P) * full:
        with b.loop(rows) as row:
            begin()
            for number, size in b.tiles(full, P):
                yield Piece(row=row, at=number * wide, size=size, count=wide, along=True)
            if rest:
                yield Piece(row=row, at=Affine(full * wide), size=1, count=rest)
        return
    for row, size in b.tiles(rows, P):
        begin()
        for at, count in b.tiles(extent, wide):
            yield Piece(row=row, at=at, size=size, count=count)


def cut_rows(
    b: Builder, tile: Buffer, hbm: Buffer, rows: tuple[int, int, int], of: int, wide: int,
    at: Affine,
) -> Iterator[tuple[Access, Access]]:  # fmt: skip
    """Transfers of rows, `wide` elements to a partition: what is on chip, and what in memory.

    rows  how many, the partitions of each, and elements from one to the next in memory
    of    elements of each row, from the first one's `at` on; partitions may be left over
    """
    (count, each, pitch), pitch_on_chip = rows, tile.row_elements
    full, rest = divmod(of, wide)
    if full == each and of == pitch:
        lines = count * each
        yield tile.rows(lines, wide), hbm.box((wide, lines), (1, wide), at=at)
    elif count < full + (rest > 0):  # row after row
        with b.loop(count) as r:
            there, part = at + r * pitch, r * (each * pitch_on_chip)
            if full:
                yield tile.rows(full, wide, part), hbm.box((wide, full), (1, wide), at=there)
            if rest:
                last = hbm.rows(1, rest, there + full * wide)
                yield tile.rows(1, rest, part + full * pitch_on_chip), last
    else:  # the same part of all rows
        for k, some in enumerate([wide] * full + [rest] * (rest > 0)):
            to = tile.box((each * pitch_on_chip, count), (1, some), at=k * pitch_on_chip)
            yield to, hbm.box((pitch, count), (1, some), at=at + k * wide)


def to_pieces(b: Builder, to: Buffer, line: Buffer, rows: int, pieces: int) -> None:
    """A line in one partition, an element for each piece of a row, to the pieces of all rows."""
    every = line.box((pieces, 1), (0, rows), (1, pieces))
    b.emit("dma_copy", to.rows(rows * pieces, 1), every, queue="join")


def beside(b: Builder, to: Buffer, parts: Access, rows: int) -> Access:
    """What all pieces of a row have, on one partition for each row."""
    joined = to.rows(rows, parts.partitions * parts.free // rows)
    b.emit("dma_copy", joined, parts, queue="join")
    return joined
