"""What the pipeline of attention works on: parts of tiles, and blocks of their keys."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from math import ceil

from ...isa import Affine
from ..pipelining import Item
from .spec import BLOCK, Tile

__all__ = ["Block", "Part", "alike", "sections", "span"]


@dataclass(frozen=True, slots=True)
class Part:
    """A tile of queries with one section of its keys.

    tile    the blocks of the section
    start   its first key
    opens   it is the tile's first section
    closes  it is the tile's last section
    member  which of the heads that share keys, after that of the loops
    brings  keys and values, which those after it use too
    """

    tile: Tile
    start: int
    opens: bool
    closes: bool
    member: int = 0
    brings: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """What one step of two parts' pipelines works on: keys of the newer one, of the older one."""

    coming: int
    going: int
    ends: bool  # the block after the full ones
    later: bool = False  # the older part's last one, multiplied in the next step


def sections(tile: Tile, length: int) -> list[Part]:
    count, at_once = max(1, ceil(tile.seen / length)), length // BLOCK
    parts = []
    for s in range(count):
        closes = s == count - 1
        full = tile.full - s * at_once if closes else at_once
        last, diagonal = (tile.last, tile.diagonal) if closes else (0, False)
        parts.append(Part(Tile(tile.rows, full, last, diagonal), s * length, s == 0, closes))
    return parts


def alike(kinds: tuple[Part | None, ...]) -> Hashable:
    """Of older parts it does not matter what `causal` hides; of one to come, which keys it sees."""
    *following, coming, going, gone = kinds
    ahead = (x and replace(x, tile=Tile(x.tile.rows, 0, 0, False)) for x in following)
    older = (x and replace(x, tile=replace(x.tile, diagonal=False)) for x in (going, gone))
    return (*ahead, coming, *older)


def span(item: Item[Block], tile: Tile) -> tuple[Affine, Affine]:
    """A block's number in its section, and its first key."""
    number = Affine(tile.full) if item.kind.ends else item.index
    return number, number * BLOCK
