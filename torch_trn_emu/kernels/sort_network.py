"""A sorting network over rows: values in ascending order, each with the place it came from.

Merges compare a block's first half with its second half backwards, then halves of halves forwards,
so every comparison puts the smaller one first and partitions never differ. Rows that fit are sorted
in SBUF. Longer ones are cut into chunks, one a partition: a comparison of elements at least a chunk
apart is a pass over scratch memory, and what is closer is done in SBUF again.

What is compared are keys (`sort_keys.py`), in torch's order: NaN is larger than all.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Instruction, Program, Role, affine, rows_of
from .limits import P
from .pieces import Piece, pieces
from .sort_keys import PADDING, Keys

__all__ = ["network_cycles", "sort_rows"]

CHUNK = 4096  # elements of a partition that are sorted in SBUF (four tiles of them, and a mask)
LEAST = 256  # elements of a chunk, where there are too few for all partitions (chosen)
PIECE = 1024  # of two chunks that are compared at once (chosen)
# Of an element and its place, to SBUF and back: 16 bytes at about 370 GB/s (inferred).
MOVED_CYCLES = 0.04
PASS_CYCLES = 6000  # that a pass over scratch memory takes at least, about 5 us (inferred)

Pair = tuple[Buffer, Buffer]  # values and places


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << max(1, (n - 1).bit_length())


def _chunk(rows: int, padded: int) -> int:
    """Elements of a row that one partition holds, so that it takes the least time."""
    chunks = [min(padded, LEAST)]
    while chunks[-1] < min(padded, CHUNK):
        chunks.append(2 * chunks[-1])
    return min(chunks, key=lambda chunk: _cycles(rows, padded, chunk))


def _cycles(rows: int, padded: int, chunk: int) -> float:
    """Vector cycles: five passes of float32 over half the elements, two each."""
    depth, inside = padded.bit_length() - 1, chunk.bit_length() - 1
    steps, passes = depth * (depth + 1) / 2, depth - inside
    moved = MOVED_CYCLES * rows * padded
    work = ceil(rows * (padded // chunk) / P) * chunk * 5 * steps
    return work + max(2 * PASS_CYCLES, moved) * passes * (passes + 1) / 2 + moved * passes


def network_cycles(rows: int, columns: int) -> float:
    """Vector cycles of sorting rows."""
    padded = _power(columns)
    return _cycles(rows, padded, _chunk(rows, padded))


def sort_rows(
    rows: int, columns: int, count: int, *, descending: bool, chip: Chip, dtype: str,
    cores: int = 1, first: int = 0,
) -> Program:  # fmt: skip
    """values[r, :], index[r, :] = `first` to `count` of row r in order, and where they were."""
    rows = ceil(rows / cores)
    b = Builder(f"sort {rows}x{columns}", cores=cores)
    return _Sort(b, rows, columns, range(first, count), -1.0 if descending else 1.0, dtype).build()


class _Sort:
    def __init__(
        self, b: Builder, rows: int, columns: int, stored: range, sign: float, dtype: str
    ) -> None:
        self.b, self.rows, self.columns = b, rows, columns
        self.first, self.count = stored.start, len(stored)
        self.keys = Keys(b, sign, dtype)
        self.comparisons: dict[tuple[int, int, int, bool], list[Instruction]] = {}
        self.padded = _power(columns)
        self.chunk = _chunk(rows, self.padded)
        self.source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
        self.values = b.hbm("values", (rows, self.count), dtype, Role.OUTPUT)
        self.index = b.hbm("index", (rows, self.count), "int32", Role.OUTPUT)
        wide = self.chunk
        self.raw = b.sbuf("raw", wide, dtype)
        self.tiles: tuple[Pair, Pair] = tuple(  # type: ignore[assignment]
            (b.sbuf(f"values {k}", wide, "float32"), b.sbuf(f"places {k}", wide, "float32"))
            for k in range(2)
        )
        self.mask = b.sbuf("exchanged", max(1, wide // 2), "float32")
        self.whole = b.sbuf("whole", wide, "int32")
        self.column = b.sbuf("first column", 1, "float32")
        self.held: tuple[Pair, Pair]

    def build(self) -> Program:
        if self.chunk == self.padded:
            for r0, size in self.b.tiles(self.rows, P):
                self._bring(Piece(row=r0, size=size, count=self.columns))
                done = self._network(self.tiles, size)
                self._store(Piece(row=r0, size=size, count=self.count), done, self.first)
            return self.b.build()
        self.held = self._scratch()
        self._spread()
        chunks = self.rows * self.padded // self.chunk
        self._inside(chunks, lambda tiles, size: self._network(tiles, size))
        block = 2 * self.chunk
        while block <= self.padded:
            self._across(block // 2, mirrored=True)
            apart = block // 4
            while apart >= self.chunk:
                self._across(apart, mirrored=False)
                apart //= 2
            self._inside(chunks, lambda tiles, size: self._merge(tiles, size, self.chunk // 2))
            block *= 2
        self._gather()
        return self.b.build()

    # --- between memory and SBUF ---

    def _bring(self, piece: Piece) -> None:
        """Keys of elements and their places; what a row lacks is larger than all."""
        b, (values, places) = self.b, self.tiles[0]
        size, count = piece.size, piece.count
        if count < self.chunk:
            b.emit("memset", rows_of(values, size, self.chunk), value=PADDING)
        raw = rows_of(self.raw, size, count)
        b.load(raw, self._there(self.source, self.columns, piece))
        spare = rows_of(self.tiles[1][0], size, count)
        self.keys.make(rows_of(values, size, count), raw, spare)
        whole, channel = rows_of(places, size, self.chunk), self.chunk if piece.along else 0
        b.emit("iota", whole, channel=channel, step=1, base=0)
        if self.chunk < self.padded:
            b.emit("tensor_scalar", whole, whole, rows_of(self.column, size, 1), op0="add")

    def _there(self, hbm: Buffer, length: int, piece: Piece) -> Access:
        """A piece of rows of `length` elements in memory."""
        pitch = self.chunk if piece.along else length
        pattern = ((pitch, piece.size), (1, piece.count))
        return Access(buffer=hbm, offset=piece.row * length + piece.at, pattern=pattern)

    def _store(self, piece: Piece, tiles: tuple[Pair, Pair], first: int = 0) -> None:
        """The first of the tiles from an element on; the second helps to turn back from keys."""
        b, size, count = self.b, piece.size, piece.count
        raw, whole = rows_of(self.raw, size, count), rows_of(self.whole, size, count)
        values, places = (rows_of(t, size, count, first) for t in tiles[0])
        self.keys.undo(raw, values, rows_of(tiles[1][0], size, count))
        b.emit("tensor_copy", whole, places)
        b.store(self._there(self.values, self.count, piece), raw)
        b.store(self._there(self.index, self.count, piece), whole)

    # --- in SBUF ---

    def _network(self, tiles: tuple[Pair, Pair], size: int) -> tuple[Pair, Pair]:
        """All of a partition in order; gives the tiles, the sorted one first."""
        block = 2
        while block <= self.chunk:
            tiles = self._compare(tiles, size, block // 2, mirrored=True)
            tiles = self._merge(tiles, size, block // 4)
            block *= 2
        return tiles

    def _merge(self, tiles: tuple[Pair, Pair], size: int, apart: int) -> tuple[Pair, Pair]:
        while apart:
            tiles = self._compare(tiles, size, apart, mirrored=False)
            apart //= 2
        return tiles

    def _compare(
        self, tiles: tuple[Pair, Pair], size: int, apart: int, *, mirrored: bool
    ) -> tuple[Pair, Pair]:
        """Elements `apart` from each other, or mirrored in blocks of twice that, put in order."""
        source, to = tiles
        kind = self.tiles.index(source), size, apart, mirrored
        if kind in self.comparisons:
            self.b.again(self.comparisons[kind])
            return to, source
        blocks = self.chunk // (2 * apart)

        def view(buffer: Buffer, upper: bool) -> Access:
            offset, step = (0, 1) if not upper else (2 * apart - 1, -1) if mirrored else (apart, 1)
            pattern = ((self.chunk, size), (2 * apart, blocks), (step, apart))
            return Access(buffer=buffer, offset=Affine(offset), pattern=pattern)

        lower, upper = ([view(t, u) for t in source] for u in (False, True))
        outs = [[view(t, u) for t in to] for u in (False, True)]
        mask = rows_of(self.mask, size, self.chunk // 2)
        self.comparisons[kind] = self._exchange(lower, upper, outs, mask)
        return to, source

    def _exchange(
        self, lower: list[Access], upper: list[Access], outs: list[list[Access]], mask: Access
    ) -> list[Instruction]:
        b, ((low, low_place), (high, high_place)) = self.b, outs
        return [
            b.emit("tensor_tensor", mask, lower[0], upper[0], op="greater"),
            b.emit("tensor_tensor", low, lower[0], upper[0], op="min"),
            b.emit("tensor_tensor", high, lower[0], upper[0], op="max"),
            b.emit("select", low_place, mask, upper[1], lower[1]),
            b.emit("select", high_place, mask, lower[1], upper[1]),
        ]

    # --- over scratch memory ---

    def _scratch(self) -> tuple[Pair, Pair]:
        size = (self.rows * self.padded,)
        names = [(f"values in memory {k}", f"places in memory {k}") for k in range(2)]
        a, c = [tuple(self.b.hbm(n, size, "float32", Role.SCRATCH) for n in two) for two in names]
        wide = min(PIECE, self.chunk)
        kinds = ("lower", "upper", "smaller", "larger")
        self.pieces = {
            kind: [self.b.sbuf(f"{kind} {what}", wide, "float32", slots=2)
                   for what in ("values", "places")]
            for kind in kinds
        }  # fmt: skip
        self.greater = self.b.sbuf("greater", wide, "float32")
        return a, c  # type: ignore[return-value]

    def _spread(self) -> None:
        """The rows into scratch memory, filled up to a power of two."""
        b, column, held = self.b, rows_of(self.column, P, 1), self.held[0]
        for piece in pieces(
            b, self.rows, self.chunk, self.columns, lambda: self._fill(column, 0.0)
        ):
            self._bring(piece)
            gone = piece.count * (piece.size if piece.along else 1)
            b.emit("tensor_scalar", column, column, op0="add", imm0=float(gone))
            self._keep(piece.row * self.padded + piece.at, self._pitch(piece), piece.size, held)
        filled = ceil(self.columns / self.chunk) * self.chunk
        if filled == self.padded:
            return
        for tile in self.tiles[0]:
            self._fill(rows_of(tile, P, self.chunk), PADDING)
        for piece in pieces(b, self.rows, self.chunk, self.padded - filled):
            at = piece.row * self.padded + piece.at + filled
            self._keep(at, self._pitch(piece), piece.size, held)

    def _fill(self, to: Access, value: float) -> None:
        self.b.emit("memset", to, value=value)

    def _pitch(self, piece: Piece) -> int:
        """From a partition's chunk to the next one's, in scratch memory."""
        return self.chunk if piece.along else self.padded

    def _keep(
        self, at: Affine, pitch: int, size: int, held: Pair, *, tiles: Pair | None = None,
        load: bool = False, count: int = 0,
    ) -> None:  # fmt: skip
        """Chunks, or `count` elements of each, one a partition, between SBUF and scratch memory."""
        count = count or self.chunk
        for tile, hbm in zip(tiles or self.tiles[0], held, strict=True):
            here = rows_of(tile, size, count)
            there = Access(buffer=hbm, offset=at, pattern=((pitch, size), (1, count)))
            if load:
                self.b.load(here, there)
            else:
                self.b.store(there, here)

    def _inside(self, chunks: int, work: Any) -> None:
        """`work` on every chunk."""
        source, to = self.held
        for first, size in self.b.tiles(chunks, P):
            at = first * self.chunk
            self._keep(at, self.chunk, size, source, load=True)
            self._keep(at, self.chunk, size, to, tiles=work(self.tiles, size)[0])
        self.held = to, source

    def _across(self, apart: int, *, mirrored: bool) -> None:
        """Chunks `apart` elements from each other, or mirrored in blocks of twice that."""
        wide = min(PIECE, self.chunk)
        block, last = 2 * apart, 2 * apart - wide
        for low, pitch, size in self._pairs(apart):
            with self.b.loop(self.chunk // wide) as piece:
                below = low.base + low.along + piece * wide
                if mirrored:
                    above = low.base + last + (low.along + piece * wide) * -1
                    pitches = pitch, -pitch if pitch < block else pitch
                else:
                    above, pitches = below + apart, (pitch, pitch)
                self._piece((below, above), pitches, size, wide, mirrored)
        self.held = self.held[1], self.held[0]

    def _pairs(self, apart: int) -> Iterator[tuple[Any, int, int]]:
        """(where the lower chunks are, their distance, how many) with one pair a partition."""
        b, block = self.b, 2 * apart
        blocks, halves = self.rows * self.padded // block, apart // self.chunk
        if halves >= blocks:  # partitions along a block
            with b.loop(blocks) as number:
                for along, size in b.tiles(halves, P):
                    yield _Place(number * block, along * self.chunk), self.chunk, size
            return
        with b.loop(halves) as along:
            for number, size in b.tiles(blocks, P):
                yield _Place(number * block, along * self.chunk), block, size

    def _piece(
        self, starts: tuple[Affine, Affine], pitches: tuple[int, int], size: int, wide: int,
        mirrored: bool,
    ) -> None:  # fmt: skip
        b, (source, to) = self.b, self.held
        b.fresh(*(t for tiles in self.pieces.values() for t in tiles))

        def there(hbm: Buffer, upper: bool) -> Access:
            pattern = ((pitches[upper], size), (1, wide))
            return Access(buffer=hbm, offset=starts[upper], pattern=pattern)

        def view(tile: Buffer, upper: bool) -> Access:
            start, step = (wide - 1, -1) if upper and mirrored else (0, 1)
            return Access(buffer=tile, offset=affine(start), pattern=((wide, size), (step, wide)))

        for kind, upper in (("lower", False), ("upper", True)):
            for tile, hbm in zip(self.pieces[kind], source, strict=True):
                b.load(rows_of(tile, size, wide), there(hbm, upper))
        lower, upper_, smaller, larger = (
            [view(t, kind in ("upper", "larger")) for t in self.pieces[kind]]
            for kind in ("lower", "upper", "smaller", "larger")
        )
        self._exchange(lower, upper_, [smaller, larger], rows_of(self.greater, size, wide))
        for kind, upper in (("smaller", False), ("larger", True)):
            for tile, hbm in zip(self.pieces[kind], to, strict=True):
                b.store(there(hbm, upper), rows_of(tile, size, wide))

    def _gather(self) -> None:
        """What is asked of every row from scratch memory into the results."""
        for piece in pieces(self.b, self.rows, self.chunk, self.count):
            at, pitch = piece.row * self.padded + piece.at + self.first, self._pitch(piece)
            self._keep(at, pitch, piece.size, self.held[0], load=True, count=piece.count)
            self._store(piece, self.tiles)


class _Place:
    """A lower chunk: its block's first element, and how far in the block it is."""

    def __init__(self, base: Affine, along: Affine) -> None:
        self.base, self.along = base, along
