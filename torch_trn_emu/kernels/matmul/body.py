"""The loops of a product whose blocks hold all of the contraction."""

from math import ceil
from typing import Any, NamedTuple

from ...isa import Affine, Buffer, Builder, Index, affine
from ..limits import BANK, P
from .blocking import Plan, Schedule
from .epilogue import Finisher
from .evacuation import Evacuation, Leaving
from .operand import Operand

__all__ = ["Body", "Tile"]


class Tile(NamedTuple):
    """Rows and columns of a block of the result that a PSUM bank holds."""

    row: Affine
    rows: int
    column: Affine
    columns: int


class Body:
    """The loops of a blocked matmul."""

    def __init__(
        self,
        b: Builder,
        left: Operand,
        right: Operand,
        out: Buffer,
        plan: Plan,
        schedule: Schedule,
        leaving: Leaving,
    ) -> None:
        self.b, self.left, self.right, self.out = b, left, right, out
        self.plan, self.schedule = plan, schedule
        self.pairs = [(left, right)]
        self.bases: tuple[Index, Index, Index] = (0, 0, 0)
        self.finisher: Finisher | None = None
        slots = schedule.psum_slots - plan.turned  # what turns results takes a bank
        self.psum = b.psum("accumulator", BANK, slots=slots)
        self.result = b.sbuf("result", plan.width, out.dtype, slots=schedule.result_slots)
        self.leaving = Evacuation(
            b, leaving, self.result, halves=left.tiles <= 4, by_tile=plan.turned
        )

    def product(self, sizes: tuple[int, int, int, int]) -> None:
        """All of the batch."""
        batch, m, k, n = sizes
        with self.b.loop(batch) as i:
            self.bases = (i * (m * k), i * (k * n), i * (m * n))
            if self.right.picked:
                self.right.picked.choose(i)
                self.bases = (self.bases[0], 0, self.bases[2])
            self.leaving.batch = i
            self._blocks(m, n)

    def _blocks(self, m: int, n: int) -> None:
        b, plan = self.b, self.plan
        if plan.m_outside:
            for m0, ms in b.tiles(m, plan.block_m):
                self.left.load(m0, ms, self.bases[0])
                for n0, ns in b.tiles(n, plan.block_n):
                    self.right.load(n0, ns, self.bases[1])
                    self.leaving.columns(n0, ns)
                    self._rows(m0, ms, n0, ns)
        else:
            for n0, ns in b.tiles(n, plan.block_n):
                self.right.load(n0, ns, self.bases[1])
                self.leaving.columns(n0, ns)
                for m0, ms in b.tiles(m, plan.block_m):
                    self.left.load(m0, ms, self.bases[0])
                    self._rows(m0, ms, n0, ns)

    def _rows(self, m0: Affine, ms: int, n0: Affine, ns: int) -> None:
        b = self.b
        for row, rows in b.tiles(ms, P):
            b.fresh(self.result)
            self.leaving.rows(m0 + row, rows, n0, ns)
            for column, columns in b.tiles(ns, BANK):
                b.fresh(self.psum)
                tile = Tile(row, rows, column, columns)
                for left, right in self.pairs:
                    self._accumulate(left, right, tile)
                self._add_earlier(tile)
                self.leaving.evacuate(self.psum, rows, column, columns)
            self._finish(m0 + row, rows, n0, ns)

    def _finish(self, row: Affine, rows: int, n0: Affine, ns: int, pieces: int = 1) -> None:
        """What is done with a tile of results, and its way to HBM."""
        if self.finisher:
            self.finisher.finish(self.result, row, n0, rows, ns, self.bases[2], pieces)
            return
        at = row * self.out.shape[-1] + n0 + affine(self.bases[2])
        made = self.result.rows(rows * pieces, ns // pieces)
        self.b.store(self.out.rows(rows, ns, at), made)

    def _add_earlier(self, tile: Tile) -> None:
        """Add to PSUM what earlier chunks of the contraction left: here there are none."""

    def _accumulate(self, left: Operand, right: Operand, tile: Tile) -> None:
        tile_k = left.packing.tile_k
        for part, _, ks in left.k_parts():
            for t in range(ceil(ks / tile_k)):
                self._multiply(left, right, part, t, min(ks - t * tile_k, tile_k), tile)

    def _multiply(
        self, left: Operand, right: Operand, part: Affine, t: int, ks: int, tile: Tile
    ) -> None:
        b, load = self.b, self.schedule.load
        into = self.psum.rows(tile.rows, tile.columns)
        row, column = (part, t, ks, tile.row, tile.rows), (part, t, ks, tile.column, tile.columns)
        if left.packing.mx:
            operands = left.tile(*row), right.tile(*column), left.scale(*row), right.scale(*column)
            b.emit("nc_matmul_mx", into, *operands, load=load)
            return
        double = left.packing.per_row == 2 and ks >= left.packing.tile_k
        mode: dict[str, Any] = {"perf_mode": "double_row"} if double else {}
        for lane in range(1 if double else ceil(ks / P)):
            b.emit("nc_matmul", into, left.tile(*row, lane), right.tile(*column, lane), load=load,
                   **mode)  # fmt: skip
