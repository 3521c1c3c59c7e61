"""The loops of a product whose contraction passes in chunks."""

from math import ceil
from typing import Any

from ...isa import Access, Affine, Builder, Index, affine
from ..limits import BANK, P
from .blocking import Chunks
from .body import Body, Tile
from .operand import Operand

__all__ = ["Chunked"]


class Chunked(Body):
    """The loops of a matmul whose contraction passes in chunks: partial sums stay in SBUF."""

    def __init__(self, b: Builder, left: Operand, right: Operand, *rest: Any) -> None:
        super().__init__(b, left, right, *rest)
        self.sums = b.sbuf("sums", self.plan.block_n, "float32", parts=ceil(self.plan.block_m / P))
        cut = Chunks.of(left.k, self.plan.chunk, left.packing)
        last = []  # what the last step multiplies, and where in K it starts
        if cut.groups:
            pair = left.first(cut.groups), right.first(cut.groups)
            last.append((pair, cut.count * cut.size))
        if cut.tail:
            pair = left.tail(cut.tail), right.tail(cut.tail)
            last.append((pair, cut.count * cut.size + cut.groups))
        self.count, self.repeated = cut.count, cut.count if last else cut.count - 1
        self.last = last or [((left, right), self.repeated * cut.size)]

    def prepare(self, sizes: tuple[int, int, int, int]) -> None:
        """Keep in HBM, as the array reads it, what engines would prepare for several blocks."""
        batch, m, _, n = sizes
        uses = ceil(n / self.plan.block_n), ceil(m / self.plan.block_m)
        for i, main in enumerate((self.left, self.right)):
            if batch > 1 or uses[i] <= 2 or not main.prepared_by_engines:
                continue
            step = main.f if main.contraction_major else 1
            main.restage(self.count, self.plan.chunk * step)
            for pair, k0 in self.last:
                if pair[i] is not main:
                    pair[i].ready = None
                    pair[i].restage(start=k0 * step)

    def _blocks(self, m: int, n: int) -> None:
        b, plan, main = self.b, self.plan, (self.left, self.right)
        for m0, ms in b.tiles(m, plan.block_m):
            for n0, ns in b.tiles(n, plan.block_n):
                self.leaving.columns(n0, ns)
                self._load(main, 0, m0, ms, n0, ns)
                self._sum(ms, ns, first=True)
                if self.repeated > 1:
                    with b.loop(self.repeated - 1) as i:
                        self._load(main, i + 1, m0, ms, n0, ns)
                        self._sum(ms, ns, first=False)
                for pair, k0 in self.last:
                    if pair == main:
                        self._load(main, self.repeated, m0, ms, n0, ns)
                    else:
                        self._load(pair, 0, m0, ms, n0, ns, k0)
                self.pairs = [pair for pair, _ in self.last]
                self._rows(m0, ms, n0, ns)

    def _load(
        self,
        pair: tuple[Operand, Operand],
        chunk: Index,
        m0: Affine,
        ms: int,
        n0: Affine,
        ns: int,
        start: int = 0,
    ) -> None:
        k0 = affine(chunk) * self.plan.chunk + start
        for operand, f0, fs, base in zip(pair, (m0, n0), (ms, ns), self.bases[:2], strict=True):
            step = operand.f if operand.contraction_major else 1
            operand.load(f0, fs, affine(base) + k0 * step, chunk)

    def _sum(self, ms: int, ns: int, *, first: bool) -> None:
        """The product of a chunk, to the sums of its block."""
        b = self.b
        for row, rows in b.tiles(ms, P):
            for column, columns in b.tiles(ns, BANK):
                b.fresh(self.psum)
                tile = Tile(row, rows, column, columns)
                self._accumulate(self.left, self.right, tile)
                source, to = self.psum.rows(rows, columns), self._sums(tile)
                if first:
                    b.emit("tensor_copy", to, source)
                else:
                    b.emit("tensor_tensor", to, to, source, op="add")

    def _add_earlier(self, tile: Tile) -> None:
        into = self.psum.rows(tile.rows, tile.columns)
        self.b.emit("tensor_tensor", into, into, self._sums(tile), op="add")

    def _sums(self, tile: Tile) -> Access:
        part = tile.row.divided(P)
        return self.sums.rows(tile.rows, tile.columns, tile.column, part=part)
