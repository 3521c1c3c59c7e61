"""What happens to a product on its way out of PSUM: scale, addend, activation, cast.

The Vector engine adds the addend in the pass that empties the bank; the Scalar engine follows with
the activation, or does everything when there is no addend.
"""

from dataclasses import dataclass
from typing import Any

from ...isa import Affine, Buffer, Builder, Engine, Index, Role, affine, itemsize
from ..limits import SLOTS, P

__all__ = ["PLAIN", "Evacuation", "Leaving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """out[b, m, n] = function(alpha * product + beta * addend).

    strides   of the addend over batch, m and n, in elements; 0 repeats. None: there is none
    elements  of the addend's memory
    function  an activation of the Scalar engine, or ""
    """

    alpha: float = 1.0
    beta: float = 1.0
    strides: tuple[int, int, int] | None = None
    elements: int = 0
    dtype: str = "float32"
    function: str = ""

    @property
    def bytes_per_column(self) -> float:
        """SBUF bytes per partition and column of a block that the addend takes."""
        return SLOTS * itemsize(self.dtype) if self.strides and self.strides[2] else 0.0

    @property
    def plain(self) -> bool:
        return self.strides is None and self.alpha == 1 and not self.function


PLAIN = Leaving()


class Evacuation:
    """Empties PSUM tiles into `result`."""

    def __init__(
        self, b: Builder, leaving: Leaving, result: Buffer, *, halves: bool, by_tile: bool = False
    ) -> None:
        self.b, self.leaving, self.result, self.halves = b, leaving, result, halves
        self.by_tile = by_tile or any((leaving.strides or ())[:2])
        self.batch: Index = 0
        if leaving.strides:
            self.hbm = b.hbm("addend", (leaving.elements,), leaving.dtype, Role.INPUT)
            wide = result.row_elements if leaving.strides[2] else 1
            self.tile = b.sbuf("addend tile", wide, leaving.dtype, slots=SLOTS)
            if wide > 1 and leaving.alpha != 1:
                self.alpha = b.sbuf("alpha", 1, "float32")
                b.emit("memset", self.alpha.rows(P, 1), value=leaving.alpha)

    def columns(self, n0: Index, ns: int) -> None:
        """Bring an addend that all rows share, for a block of columns."""
        strides = self.leaving.strides
        if strides and not self.by_tile:
            self._load(P, affine(n0) * strides[2], ns, 0)

    def rows(self, m0: Index, rows: int, n0: Index, ns: int, pieces: int = 1) -> None:
        """Bring the addend of a tile of rows, each in `pieces` on as many partitions."""
        strides = self.leaving.strides
        if strides and self.by_tile:
            over_batch, over_m, over_n = strides
            start = affine(self.batch) * over_batch + affine(m0) * over_m + affine(n0) * over_n
            self._load(rows, start, ns, over_m, pieces)

    def _load(self, rows: int, start: Affine, ns: int, over_m: int, pieces: int = 1) -> None:
        e, b = self.leaving, self.b
        b.fresh(self.tile)
        step = e.strides[2] if e.strides else 0
        wide = ns if step else pieces
        to = self.tile.rows(rows * pieces, wide // pieces)
        b.load(to, self.hbm.box((over_m, rows), (step, wide), at=start))
        if e.beta != 1:
            b.emit("tensor_scalar", to, to, op0="multiply", imm0=e.beta)

    def evacuate(self, psum: Buffer, rows: int, column: Index, columns: int) -> None:
        """A tile of PSUM to `column` .. of the result."""
        e, b = self.leaving, self.b
        if e.plain:
            self._plain(psum, rows, column, columns)
            return
        source, to = psum.rows(rows, columns), self.result.rows(rows, columns, column)
        if e.strides is None:
            b.emit("activation", to, source, op=e.function or "copy", scale=e.alpha)
            return
        into = source if e.function else to
        added = self.tile.rows(rows, columns, column) if e.strides[2] else self.tile.rows(rows, 1)
        if not e.strides[2]:  # one value a row
            scaled: dict[str, Any] = {"op0": "multiply", "imm0": e.alpha, "op1": "add"}
            b.emit("tensor_scalar", into, source, added, **scaled)
        elif e.alpha == 1:
            b.emit("tensor_tensor", into, source, added, op="add")
        else:
            operands = (source, self.alpha.rows(rows, 1), added)
            b.emit("scalar_tensor_tensor", into, *operands, op0="multiply", op1="add")
        if e.function:
            b.emit("activation", to, source, op=e.function)

    def _plain(self, psum: Buffer, rows: int, column: Index, columns: int) -> None:
        """A copy; with little to accumulate, Vector and Scalar take half each."""
        half = columns // 2 if self.halves else 0
        if half:
            to = self.result.rows(rows, half, column)
            self.b.emit("activation", to, psum.rows(rows, half), op="copy")
        to = self.result.rows(rows, columns - half, affine(column) + half)
        source = psum.rows(rows, columns - half, half)
        self.b.emit("tensor_copy", to, source, engine=Engine.VECTOR)
