"""Chunks of long rows, one a partition: of many rows at once, or many of one row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from ..isa import Affine, Builder
from .limits import P

__all__ = ["Piece", "pieces"]


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
