"""Matrices of a table chosen by index, brought by their rows: the numbers DMA takes them by.

A product of a batch whose second operands are `table[index]` loads the chosen matrices straight
into its operand tiles. Inferred: a pass of its own would store them and load them again, for which
published steps of mixtures of experts leave no time.
"""

from math import ceil

from ...isa import Access, Affine, Buffer, Builder, Engine, Role, affine
from ..limits import P

__all__ = ["Picked"]


class Picked:
    """Row q x 128 + p of the chosen matrix is number [p, q] of the table's rows."""

    def __init__(self, b: Builder, table: Buffer, batch: int) -> None:
        self.b, (self.matrices, self.k, _) = b, table.shape
        self.hbm = b.hbm("picked", (batch,), "int32", Role.INPUT)
        self.tiles = ceil(self.k / P)
        self.index, self.less = (b.sbuf(n, 1, "int32", slots=2) for n in ("index", "negative"))
        self.start = b.sbuf("rows of a matrix", self.tiles, "int32")
        self.numbers = b.sbuf("rows picked", self.tiles, "int32", slots=2)
        b.emit("iota", self.start.rows(P, self.tiles), channel=1, step=P, base=0)

    def choose(self, i: Affine) -> None:
        """The rows of matrix index[i]; indices below 0 count from the end."""
        b = self.b
        b.fresh(self.index, self.less, self.numbers)
        index, less = (t.rows(P, 1) for t in (self.index, self.less))
        b.load(index, self.hbm.box((0, P), (1, 1), at=i))
        on = Engine.GPSIMD  # which keeps integers whole
        b.emit("tensor_scalar", less, index, engine=on, op0="less", imm0=0, op1="multiply",
               imm1=self.matrices)  # fmt: skip
        b.emit("tensor_tensor", index, index, less, engine=on, op="add")
        b.emit("tensor_scalar", index, index, engine=on, op0="multiply", imm0=self.k)
        numbers, start = (t.rows(P, self.tiles) for t in (self.numbers, self.start))
        repeated = self.index.box((1, P), (0, self.tiles))
        b.emit("tensor_tensor", numbers, start, repeated, engine=on, op="add")

    def load(self, to: Access, source: Access, k0: Affine) -> None:
        """`source`: rows of the table's first matrix from `k0` on, as many as `to` has."""
        run = source.pattern[-1]
        pitch, rows = run[1], self.matrices * self.k
        table = source.buffer
        width = table.shape[-1]
        column = source.offset + k0 * -width
        every = table.box((width, rows), run, at=column)
        count = to.free // pitch
        numbers = self.numbers.rows(to.partitions, count, affine(k0).divided(P))
        self.b.emit("dma_gather", to, every, numbers, queue=f"load {table.name}")
