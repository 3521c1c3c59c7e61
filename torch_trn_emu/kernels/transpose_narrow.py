"""Transposes within partitions, of any dtype: the fastest for few rows or few columns.

A partition has a run along the long dimension, with all of the short one or a chunk of it. In
memory all is one run on one side; on the other there is a run for each index of the short one.
"""

from collections.abc import Iterator
from math import ceil

from ..isa import Affine, Builder, Engine, Program, Role, itemsize
from .limits import P, evenly

__all__ = ["transpose_narrow"]

HELD = 8192  # elements of a partition that change places at once (chosen)
RUN = 512  # least bytes of a run in memory (documented: DMA's full rate)
WHOLE, CHUNK = 512, 256  # bytes of the short dimension: at most all of it, else so many (chosen)


class _Narrow:
    """One core's matrices; `long` has `pieces` runs of `run`, the last of which may overlap, and
    `short` chunks of `chunk`.
    """

    def __init__(self, b: Builder, outer: int, rows: int, columns: int, dtype: str) -> None:
        self.b, self.outer, self.rows, self.columns = b, outer, rows, columns
        self.block = rows * columns
        self.source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
        self.out = b.hbm("out", (outer * columns, rows), dtype, Role.OUTPUT)
        self.long, self.short = max(rows, columns), min(rows, columns)
        width = int(itemsize(dtype))
        self.whole = self.block <= HELD and outer > 1
        if self.whole:
            self.together = max(1, min(HELD // self.block, ceil(outer / P)))
            self.size = self.together * self.block
        else:
            whole = (WHOLE if self.outer == 1 else 4 * WHOLE) // width
            self.chunk = self.short if self.short <= whole else evenly(self.short, CHUNK // width)
            most = HELD // self.chunk
            passes = ceil(self.long / (P * most))
            self.run = evenly(
                self.long, max(ceil(self.long / (P * passes)), min(RUN // width, most))
            )
            self.pieces = ceil(self.long / self.run)
            even = ceil(self.long / (1 << self.pieces.bit_length() - 1))
            if self.pieces < P and self.outer > 1 and even <= most + most // 8:  # on all partitions
                self.run, self.pieces = even, ceil(self.long / even)
            self.size = self.run * self.chunk
        self.data, self.made = (b.sbuf(n, self.size, dtype, slots=2) for n in ("data", "turned"))

    def turn(self, parts: int, rows: int, columns: int, count: int = 1) -> None:
        """`count` matrices on each partition, half of the result's rows by either engine."""
        ways = [(0, columns // 2, Engine.VECTOR), (columns // 2, columns, Engine.SCALAR)]
        matrix = rows * columns
        for first, end, engine in ways:
            if first == end:
                continue
            head, inner = (self.size, parts), [(matrix, count)] * (count > 1)
            pattern = (head, *inner, (rows, end - first), (1, rows))
            to = self.made.box(*pattern, at=first * rows)
            pattern = (head, *inner, (1, end - first), (columns, rows))
            x = self.data.box(*pattern, at=first)
            self.b.emit("tensor_copy", to, x, engine=engine)

    def matrices(self) -> None:
        """Whole ones, several on a partition."""
        b, pitch = self.b, self.size
        full, rest = divmod(self.outer, self.together)
        for at, some in b.tiles(full, P):
            self._matrices(at * pitch, some, self.together)
        if rest:
            self._matrices(Affine(full * pitch), 1, rest)

    def _matrices(self, at: Affine, parts: int, count: int) -> None:
        b, size = self.b, count * self.block
        b.fresh(self.data, self.made)
        here = ((self.size, parts), (1, size))
        there = ((size, parts), (1, size))
        b.load(self.data.box(*here),
               self.source.box(*there, at=at))  # fmt: skip
        self.turn(parts, self.rows, self.columns, count)
        b.store(self.out.box(*there, at=at),
                self.made.box(*here))  # fmt: skip

    def runs(self) -> None:
        b = self.b
        for chunk in b.tiles(self.short, self.chunk):
            if self.pieces <= P:
                for o, some in b.tiles(self.outer, P // self.pieces):
                    self._runs(o, some, Affine(), self.pieces, chunk, rest=True)
                continue
            with b.loop(self.outer) as o:
                before = (self.pieces - 1) // P * P
                for piece, some in b.tiles(before, P):
                    self._runs(o, 1, piece, some, chunk, rest=False)
                self._runs(o, 1, Affine(before), self.pieces - before, chunk, rest=True)

    def _runs(
        self, o: Affine, outer: int, piece: Affine, pieces: int, chunk: tuple[Affine, int], *,
        rest: bool,
    ) -> None:  # fmt: skip
        """Pieces of some matrices; the last ends where its matrix does."""
        b, (_, count) = self.b, chunk
        b.fresh(self.data, self.made)
        by_rows = self.rows >= self.columns
        last = rest and self.long % self.run > 0
        for load in (True, False):
            if not load:
                self.turn(outer * pieces, *((self.run, count) if by_rows else (count, self.run)))
            for number, parts, at in self._parts(piece, pieces, last):
                every = (pieces, outer, number)
                self._move(o, at, parts, every, chunk, load=load)

    def _parts(self, piece: Affine, pieces: int, last: bool) -> Iterator[tuple[int, int, Affine]]:
        """(number of the first, how many, where it begins along the long dimension)"""
        if pieces > last:
            yield 0, pieces - last, piece * self.run
        if last:
            yield pieces - 1, 1, Affine(self.long - self.run)

    def _move(
        self, o: Affine, at: Affine, parts: int, every: tuple[int, int, int],
        chunk: tuple[Affine, int], *, load: bool,
    ) -> None:  # fmt: skip
        """`parts` pieces of each matrix; every: partitions of one, how many, and the first."""
        (c0, count), run, short = chunk, self.run, self.short
        hbm, buffer = (self.source, self.data) if load else (self.out, self.made)
        if load == (self.rows >= self.columns):  # the short dimension comes last there
            inner = ((1, run * count),) if count == short else ((short, run), (1, count))
            on_chip = ((1, run * count),) if count == short else ((count, run), (1, count))
            offset, pitch = o * self.block + at * short + c0, run * short
        else:
            inner, on_chip = ((self.long, count), (1, run)), ((run, count), (1, run))
            offset, pitch = o * self.block + c0 * self.long + at, run
        pieces, outer, first = every
        lines, blocks = (self.size * pieces, outer), (self.block, outer)
        here = buffer.box((self.size, parts), lines, *on_chip, at=first * self.size)  # fmt: skip
        there = hbm.box((pitch, parts), blocks, *inner, at=offset)
        if load:
            self.b.load(here, there)
        else:
            self.b.store(there, here)


def transpose_narrow(
    outer: int, rows: int, columns: int, *, dtype: str = "float32", cores: int = 1
) -> Program:
    """out[o, c, r] = in[o, r, c]; cores share the outer dimension, else the long one."""
    if outer >= cores:
        outer = ceil(outer / cores)
    elif rows >= columns:
        rows = ceil(rows / cores)
    else:
        columns = ceil(columns / cores)
    b = Builder(f"transpose {outer}x{rows}x{columns}", cores=cores)
    narrow = _Narrow(b, outer, rows, columns, dtype)
    if narrow.whole:
        narrow.matrices()
    else:
        narrow.runs()
    return b.build()
