"""Pairs of elements and of their places, put in order, and networks of such pairs in SBUF."""

from collections.abc import Sequence
from dataclasses import replace

from ..isa import Access, Buffer, Builder, Engine, Instruction

__all__ = ["SHARED", "Network", "Pair", "exchange"]

Pair = tuple[Buffer, Buffer]  # values and places

SHARED = 256  # pairs from which GpSimd works on their places (chosen)


def exchange(
    b: Builder, lower: Sequence[Access], upper: Sequence[Access],
    outs: Sequence[Sequence[Access]], mask: Access, moved: Access,
) -> list[Instruction]:  # fmt: skip
    """The smaller of each pair and its place go to the first of `outs`, the others to the second.

    Values on the Vector engine. Places go with them, of many on GpSimd, which adds to both what
    they differ by, or nothing: whole numbers below 2^24 are exact.
    """
    (low, low_place), (high, high_place) = outs
    made = [
        b.emit("tensor_tensor", mask, lower[0], upper[0], op="greater"),
        b.emit("tensor_tensor", low, lower[0], upper[0], op="min"),
        b.emit("tensor_tensor", high, lower[0], upper[0], op="max"),
    ]
    if mask.free < SHARED:
        return [
            *made,
            b.emit("select", low_place, mask, upper[1], lower[1]),
            b.emit("select", high_place, mask, lower[1], upper[1]),
        ]
    g = Engine.GPSIMD
    return [
        *made,
        b.emit("tensor_tensor", moved, upper[1], lower[1], engine=g, op="subtract"),
        b.emit("tensor_tensor", moved, moved, mask, engine=g, op="multiply"),
        b.emit("tensor_tensor", low_place, lower[1], moved, engine=g, op="add"),
        b.emit("tensor_tensor", high_place, upper[1], moved, engine=g, op="subtract"),
    ]


class Network:
    """Sorts and merges of what partitions hold, from one pair of tiles to the other.

    work   buffers for the mask of a comparison, and for what places differ by
    chunk  a power of two; partitions hold `width` elements, not more
    """

    def __init__(
        self, b: Builder, tiles: tuple[Pair, Pair], work: tuple[Buffer, Buffer], chunk: int,
        width: int,
    ) -> None:  # fmt: skip
        self.b, self.tiles, self.work, self.chunk, self.width = b, tiles, work, chunk, width
        self.comparisons: dict[tuple[int, int, int, bool], list[Instruction]] = {}

    def sort(self, tiles: tuple[Pair, Pair], size: int) -> tuple[Pair, Pair]:
        """All of a partition in order; gives the tiles, the sorted one first."""
        block = 2
        while block <= self.chunk:
            tiles = self._compare(tiles, size, block // 2, mirrored=True)
            tiles = self.merge(tiles, size, block // 4)
            block *= 2
        return tiles

    def merge(
        self, tiles: tuple[Pair, Pair], size: int, apart: int | None = None
    ) -> tuple[Pair, Pair]:
        """Halves of halves from `apart` on, which is half a chunk if not given."""
        apart = self.chunk // 2 if apart is None else apart
        while apart:
            tiles = self._compare(tiles, size, apart, mirrored=False)
            apart //= 2
        return tiles

    def _compare(
        self, tiles: tuple[Pair, Pair], size: int, apart: int, *, mirrored: bool
    ) -> tuple[Pair, Pair]:
        """Elements `apart` from each other, or mirrored in blocks of twice that, put in order.

        The larger goes to the later place, so what has no partner in the last block stays.
        """
        source, to = tiles
        kind = self.tiles.index(source), size, apart, mirrored
        self.b.fresh(*self.work)
        if kind in self.comparisons:
            self.b.again(self.comparisons[kind])
            return to, source
        blocks, rest = divmod(self.width, 2 * apart)
        base, pairs, made = blocks * 2 * apart, max(0, rest - apart), list[Instruction]()
        if blocks:
            ends = (0, 1), ((2 * apart - 1, -1) if mirrored else (apart, 1))
            made += self._pairs_of(tiles, size, ends, (blocks, 2 * apart, apart), 0)
        if pairs:
            ends = ((base + 2 * apart - rest, 1), (base + rest - 1, -1)) if mirrored else (
                (base, 1), (base + apart, 1))  # fmt: skip
            made += self._pairs_of(tiles, size, ends, (1, 0, pairs), blocks * apart)
        alone = rest - 2 * pairs
        if alone:
            first = base if mirrored else base + pairs
            for one, other in zip(source, to, strict=True):
                here, there = (t.rows(size, alone, first) for t in (one, other))
                made.append(self.b.emit("tensor_copy", there, here, engine=Engine.SCALAR))
        self.comparisons[kind] = made
        return to, source

    def _pairs_of(
        self, tiles: tuple[Pair, Pair], size: int, ends: tuple[tuple[int, int], tuple[int, int]],
        box: tuple[int, int, int], at: int,
    ) -> list[Instruction]:  # fmt: skip
        """Pairs of elements: where the first of each half is and its step; blocks, their distance
        and pairs of each. `at` is where what is known of them is kept.
        """
        blocks, distance, count = box
        lower, upper = (
            [t.lanes(size, (distance, blocks), (step, count), at=offset) for t in tiles[0]]
            for offset, step in ends
        )
        outs = [
            [replace(view, buffer=t) for view, t in zip(half, tiles[1], strict=True)]
            for half in (lower, upper)
        ]
        work = (t.rows(size, blocks * count, at) for t in self.work)
        return exchange(self.b, lower, upper, outs, *work)
