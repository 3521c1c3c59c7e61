"""What a matrix product does with its results before they leave: steps on tiles from PSUM.

Operands are FULL (as large as the result), ROW (one value a column), COLUMN (one a row, of a single
product) or ONE (for all), steps as in `rows/__init__.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...isa import Access, Affine, Buffer, Builder, Index, Role, affine, itemsize
from ..rows.values import Input, Kind, Output, RowStep

__all__ = ["Epilogue", "Finisher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """`product` is the name under which steps read the result."""

    product: str
    inputs: Sequence[Input]
    steps: Sequence[RowStep]
    outputs: Sequence[Output]

    @property
    def column_bytes(self) -> float:
        """SBUF bytes for a column of a tile: two slots of everything."""
        dtypes = [i.dtype for i in self.inputs] + ["float32"] * len(self.steps)
        return 2 * sum(map(itemsize, dtypes))


class Finisher:
    """The tiles and tensors of an epilogue in one program."""

    def __init__(
        self, b: Builder, epilogue: Epilogue, shape: tuple[int, int, int], width: int
    ) -> None:
        n = shape[2]
        shapes = {Kind.FULL: shape, Kind.ROW: (n,), Kind.COLUMN: (shape[1],), Kind.ONE: (1,)}
        self.b, self.epilogue, self.n, self.width = b, epilogue, n, width
        self.kinds = {i.name: i.kind for i in epilogue.inputs}
        self.hbm = {
            i.name: b.hbm(i.name, shapes[i.kind], i.dtype, Role.INPUT) for i in epilogue.inputs
        }
        self.stored = {
            o.name: b.hbm(f"out {o.name}", shape, o.dtype, Role.OUTPUT) for o in epilogue.outputs
        }
        stored = {o.name: o.dtype for o in epilogue.outputs}
        self.tiles = {i.name: self._tile(i.name, i.dtype) for i in epilogue.inputs}
        self.tiles |= {
            s.name: self._tile(s.name, stored.get(s.name, s.dtype or "float32"))
            for s in epilogue.steps
        }

    def _tile(self, name: str, dtype: str) -> Buffer:
        narrow = self.kinds.get(name) in (Kind.COLUMN, Kind.ONE)
        return self.b.sbuf(f"{name} tile", 1 if narrow else self.width, dtype, slots=2)

    def finish(
        self, result: Buffer, row: Affine, column: Affine, rows: int, columns: int, base: Index,
        pieces: int = 1,
    ) -> None:  # fmt: skip
        """Steps on a tile of the product, and what is stored of it; `base` is of the batch.

        pieces  of each row, on as many partitions
        """
        b = self.b
        self.tiles[self.epilogue.product] = result

        def on_chip(name: str) -> Access:
            tile, narrow = self.tiles[name], self.kinds.get(name) in (Kind.COLUMN, Kind.ONE)
            step = 0 if narrow else 1
            return tile.lanes(rows * pieces, (step, columns // pieces))

        def in_hbm(buffer: Buffer) -> Access:
            offset = row * self.n + column + affine(base)
            return buffer.box((self.n, rows), (1, columns), at=offset)

        for name, buffer in self.hbm.items():
            b.fresh(self.tiles[name])
            source, to, kind = in_hbm(buffer), on_chip(name), self.kinds[name]
            if kind is Kind.ROW:
                source = buffer.box((0, rows), (1, columns), at=column)
            elif kind is not Kind.FULL:  # one value for each row, or the same
                at, pitch = (row, 1) if kind is Kind.COLUMN else (Affine(), 0)
                source = buffer.box((pitch, rows), (0 if pieces > 1 else 1, pieces), at=at)
                to = to.buffer.box((1, rows * pieces), (1, 1))
            b.load(to, source)
        for s in self.epilogue.steps:
            b.fresh(self.tiles[s.name])
            reads = [on_chip(r) for r in s.reads]
            b.emit(s.opcode, on_chip(s.name), *reads, engine=s.engine, **s.attributes)
        for name, buffer in self.stored.items():
            b.store(in_hbm(buffer), on_chip(name))
