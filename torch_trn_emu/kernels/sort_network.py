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
from ..isa import (
    Access,
    Affine,
    Buffer,
    Builder,
    Program,
    Role,
)
from .limits import P
from .pieces import Piece, pieces
from .sort_exchange import SHARED, Network, Pair, exchange
from .sort_keys import PADDING, Keys

__all__ = ["network_cycles", "sort_rows"]

CHUNK = 4096  # elements of a partition that are sorted in SBUF (four tiles of them, and a mask)
LEAST = 256  # elements of a chunk, where there are too few for all partitions (chosen)
PIECE = 512  # of two chunks that are compared at once (chosen)
EDGES = 32  # parts of a power of two, of which rows in SBUF fill a number (chosen)
# Of few pairs, of some and of many: what is not on GpSimd, and waiting for it (inferred).
PASSES = (5, 4, 3.5)
# Of an element and its place, to SBUF and back: 16 bytes at about 370 GB/s (inferred).
MOVED_CYCLES = 0.04
PASS_CYCLES = 6000  # that a pass over scratch memory takes at least, about 5 us (inferred)


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << max(1, (n - 1).bit_length())


def _chunk(rows: int, columns: int) -> int:
    """Elements of a row that one partition holds, so that it takes the least time."""
    most = min(_power(columns), CHUNK)
    chunks = [LEAST << k for k in range(16) if LEAST << k <= most] or [most]
    return min(chunks, key=lambda chunk: _cycles(rows, columns, chunk))


def _length(columns: int, chunk: int) -> int:
    """Elements that a row is filled up to: whole chunks, or parts of one."""
    padded = _power(columns)
    edge = max(2, padded // EDGES) if chunk == padded else chunk
    return edge * ceil(columns / edge)


def _cycles(rows: int, columns: int, chunk: int) -> float:
    """Vector cycles: passes of float32 over half the elements, two each."""
    depth, inside = _power(columns).bit_length() - 1, chunk.bit_length() - 1
    steps, passes = depth * (depth + 1) / 2, depth - inside
    length = _length(columns, chunk)
    moved = MOVED_CYCLES * rows * length
    width, pairs = min(chunk, length), chunk // 2
    each = PASSES[(pairs >= SHARED) + (pairs >= 2 * SHARED)]
    work = ceil(rows * ceil(length / chunk) / P) * width * each * steps
    return work + max(2 * PASS_CYCLES, moved) * passes * (passes + 1) / 2 + moved * passes


def network_cycles(rows: int, columns: int) -> float:
    """Vector cycles of sorting rows."""
    return _cycles(rows, columns, _chunk(rows, columns))


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
        self.padded = _power(columns)
        self.chunk = _chunk(rows, columns)
        self.length = _length(columns, self.chunk)
        self.source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
        self.values = b.hbm("values", (rows, self.count), dtype, Role.OUTPUT)
        self.index = b.hbm("index", (rows, self.count), "int32", Role.OUTPUT)
        self.width = wide = min(self.chunk, self.length)
        self.raw = b.sbuf("raw", wide, dtype)
        self.tiles: tuple[Pair, Pair] = tuple(  # type: ignore[assignment]
            (b.sbuf(f"values {k}", wide, "float32"), b.sbuf(f"places {k}", wide, "float32"))
            for k in range(2)
        )
        self.mask, self.moved = (
            b.sbuf(n, max(wide // 2, min(PIECE, wide)), "float32", slots=2)
            for n in ("exchanged", "moved")
        )
        self.network = Network(b, self.tiles, (self.mask, self.moved), self.chunk, wide)
        self.whole = b.sbuf("whole", wide, "int32")
        self.column = b.sbuf("first column", 1, "float32")
        self.held: tuple[Pair, Pair]

    def build(self) -> Program:
        if self.chunk == self.padded:
            for r0, size in self.b.tiles(self.rows, P):
                self._bring(Piece(row=r0, size=size, count=self.columns))
                done = self.network.sort(self.tiles, size)
                self._store(Piece(row=r0, size=size, count=self.count), done, self.first)
            return self.b.build()
        self.held = self._scratch()
        self._spread()
        chunks = self.rows * self.length // self.chunk
        self._inside(chunks, self.network.sort)
        block = 2 * self.chunk
        while block <= self.padded:
            self._across(block // 2, mirrored=True)
            apart = block // 4
            while apart >= self.chunk:
                self._across(apart, mirrored=False)
                apart //= 2
            self._inside(
                chunks, lambda tiles, size: self.network.merge(tiles, size, self.chunk // 2)
            )
            block *= 2
        self._gather()
        return self.b.build()

    # --- between memory and SBUF ---

    def _bring(self, piece: Piece) -> None:
        """Keys of elements and their places; what a row lacks is larger than all."""
        b, (values, places) = self.b, self.tiles[0]
        size, count = piece.size, piece.count
        if count < self.width:
            b.emit("memset", values.rows(size, self.width), value=PADDING)
        raw = self.raw.rows(size, count)
        b.load(raw, self._there(self.source, self.columns, piece))
        spare = self.tiles[1][0].rows(size, count)
        self.keys.make(values.rows(size, count), raw, spare)
        whole, channel = places.rows(size, self.width), self.chunk if piece.along else 0
        b.emit("iota", whole, channel=channel, step=1, base=0)
        if self.chunk < self.padded:
            b.emit("tensor_scalar", whole, whole, self.column.rows(size, 1), op0="add")

    def _there(self, hbm: Buffer, length: int, piece: Piece) -> Access:
        """A piece of rows of `length` elements in memory."""
        pitch = self.chunk if piece.along else length
        pattern = ((pitch, piece.size), (1, piece.count))
        return hbm.box(*pattern, at=piece.row * length + piece.at)

    def _store(self, piece: Piece, tiles: tuple[Pair, Pair], first: int = 0) -> None:
        """The first of the tiles from an element on; the second helps to turn back from keys."""
        b, size, count = self.b, piece.size, piece.count
        raw, whole = self.raw.rows(size, count), self.whole.rows(size, count)
        values, places = (t.rows(size, count, first) for t in tiles[0])
        self.keys.undo(raw, values, tiles[1][0].rows(size, count))
        b.emit("tensor_copy", whole, places)
        b.store(self._there(self.values, self.count, piece), raw)
        b.store(self._there(self.index, self.count, piece), whole)

    # --- over scratch memory ---

    def _scratch(self) -> tuple[Pair, Pair]:
        size = (self.rows * self.length,)
        names = [(f"values in memory {k}", f"places in memory {k}") for k in range(2)]
        a, c = [tuple(self.b.hbm(n, size, "float32", Role.SCRATCH) for n in two) for two in names]
        wide = min(PIECE, self.chunk)
        kinds = ("lower", "upper", "smaller", "larger")
        self.pieces = {
            kind: [self.b.sbuf(f"{kind} {what}", wide, "float32", slots=2)
                   for what in ("values", "places")]
            for kind in kinds
        }  # fmt: skip
        return a, c  # type: ignore[return-value]

    def _spread(self) -> None:
        """The rows into scratch memory, filled up to whole chunks."""
        b, column, held = self.b, self.column.rows(P, 1), self.held[0]
        for piece in pieces(
            b, self.rows, self.chunk, self.columns, lambda: self._fill(column, 0.0)
        ):
            self._bring(piece)
            gone = piece.count * (piece.size if piece.along else 1)
            b.emit("tensor_scalar", column, column, op0="add", imm0=float(gone))
            self._keep(piece.row * self.length + piece.at, self._pitch(piece), piece.size, held)

    def _fill(self, to: Access, value: float) -> None:
        self.b.emit("memset", to, value=value)

    def _pitch(self, piece: Piece) -> int:
        """From a partition's chunk to the next one's, in scratch memory."""
        return self.chunk if piece.along else self.length

    def _keep(
        self, at: Affine, pitch: int, size: int, held: Pair, *, tiles: Pair | None = None,
        load: bool = False, count: int = 0,
    ) -> None:  # fmt: skip
        """Chunks, or `count` elements of each, one a partition, between SBUF and scratch memory."""
        count = count or self.chunk
        for tile, hbm in zip(tiles or self.tiles[0], held, strict=True):
            here = tile.rows(size, count)
            there = hbm.box((pitch, size), (1, count), at=at)
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
        last = 2 * apart - wide
        for base, along, pitch, size in self._pairs(apart, mirrored):
            with self.b.loop(self.chunk // wide) as piece:
                below = base + along + piece * wide
                if mirrored:
                    above = base + last + (along + piece * wide) * -1
                    pitches = pitch, -pitch if pitch == self.chunk else pitch
                else:
                    above, pitches = below + apart, (pitch, pitch)
                self._piece((below, above), pitches, size, wide, mirrored)
        self._stay(apart, mirrored)
        self.held = self.held[1], self.held[0]

    def _pairs(self, apart: int, mirrored: bool) -> Iterator[tuple[Affine, Affine, int, int]]:
        """One pair a partition: the first block, how far in it the lower chunk is, from a chunk to
        the next, and how many. Partitions go along blocks, from block to block or from row to row.
        """
        b, block, length = self.b, 2 * apart, self.length
        if length % block == 0:  # blocks of all rows lie one after the other
            yield from self._of_blocks(Affine(), self.rows * length // block, apart)
            return
        blocks, rest = divmod(length, block)
        halves, pairs = apart // self.chunk, max(0, rest - apart) // self.chunk
        first = block - rest if mirrored else 0  # of the last block, which lacks some chunks
        short, long = sorted((blocks, halves))
        by_row = self.rows * (short * ceil(long / P) + ceil(pairs / P))
        if ceil(self.rows / P) * (blocks * halves + pairs) < by_row:
            for number, size in b.tiles(self.rows, P):
                row = number * length
                with b.loop(blocks) as k, b.loop(halves) as along:
                    yield row + k * block, along * self.chunk, length, size
                with b.loop(pairs) as along:
                    yield row + blocks * block, along * self.chunk + first, length, size
            return
        with b.loop(self.rows) as number:
            row = number * length
            yield from self._of_blocks(row, blocks, apart)
            for along, size in b.tiles(pairs, P):
                yield row + blocks * block, along * self.chunk + first, self.chunk, size

    def _of_blocks(
        self, base: Affine, blocks: int, apart: int
    ) -> Iterator[tuple[Affine, Affine, int, int]]:
        """Pairs of whole blocks, from `base` on."""
        b, block, halves = self.b, 2 * apart, apart // self.chunk
        if halves >= blocks:
            with b.loop(blocks) as number:
                for along, size in b.tiles(halves, P):
                    yield base + number * block, along * self.chunk, self.chunk, size
            return
        with b.loop(halves) as along:
            for number, size in b.tiles(blocks, P):
                yield base + number * block, along * self.chunk, block, size

    def _stay(self, apart: int, mirrored: bool) -> None:
        """Chunks of the rows' last blocks that have no partner."""
        blocks, rest = divmod(self.length, 2 * apart)
        pairs = max(0, rest - apart)
        count = rest - 2 * pairs
        if count:
            at = Affine(blocks * 2 * apart + (0 if mirrored else pairs))
            pattern = ((self.length, self.rows), (1, count))
            for here, there in zip(*self.held, strict=True):
                one, other = (t.box(*pattern, at=at) for t in (here, there))
                self.b.emit("dma_copy", other, one, queue=f"store {there.name}")

    def _piece(
        self, starts: tuple[Affine, Affine], pitches: tuple[int, int], size: int, wide: int,
        mirrored: bool,
    ) -> None:  # fmt: skip
        b, (source, to) = self.b, self.held
        b.fresh(*(t for tiles in self.pieces.values() for t in tiles), self.mask, self.moved)

        def there(hbm: Buffer, upper: bool) -> Access:
            pattern = ((pitches[upper], size), (1, wide))
            return hbm.box(*pattern, at=starts[upper])

        def view(tile: Buffer, upper: bool) -> Access:
            start, step = (wide - 1, -1) if upper and mirrored else (0, 1)
            return tile.box((wide, size), (step, wide), at=start)

        for kind, upper in (("lower", False), ("upper", True)):
            for tile, hbm in zip(self.pieces[kind], source, strict=True):
                b.load(tile.rows(size, wide), there(hbm, upper))
        lower, upper_, smaller, larger = (
            [view(t, kind in ("upper", "larger")) for t in self.pieces[kind]]
            for kind in ("lower", "upper", "smaller", "larger")
        )
        work = (t.rows(size, wide) for t in (self.mask, self.moved))
        exchange(self.b, lower, upper_, [smaller, larger], *work)
        for kind, upper in (("smaller", False), ("larger", True)):
            for tile, hbm in zip(self.pieces[kind], to, strict=True):
                b.store(there(hbm, upper), tile.rows(size, wide))

    def _gather(self) -> None:
        """What is asked of every row from scratch memory into the results."""
        for piece in pieces(self.b, self.rows, self.chunk, self.count):
            at, pitch = piece.row * self.length + piece.at + self.first, self._pitch(piece)
            self._keep(at, pitch, piece.size, self.held[0], load=True, count=piece.count)
            self._store(piece, self.tiles)
