"""What the programs of batch and group norm have in common: tiles over planes (`planes.py`).

What fits stays in SBUF between the two passes, longer partitions are loaded again. Parameters are
one a partition ("row") or one for every outer index of a row ("outer": the channels of a group).
"""

from dataclasses import dataclass

from ...isa import Access, Affine, Buffer, Builder, Role, itemsize
from ..planes import Chunk, Planes

__all__ = ["MOST_CHUNKS", "Norm", "NormTiles"]

# Of an operand that is kept between two passes, per partition (chosen).
RESIDENT_BYTES = 40 * 1024
MOST_CHUNKS = 1024  # whose results wait side by side to be combined; of more a sum is kept (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """What a norm does: parameters, statistics, numbers.

    outer      parameters lie along the outer dimension instead of one a row
    given      mean and variance are operands (evaluation)
    momentum   of the running statistics to update, or None
    """

    weight: bool = True
    bias: bool = True
    outer: bool = False
    given: bool = False
    momentum: float | None = None
    eps: float = 1e-5
    dtype: str = "float32"
    parameters: str = "float32"


class NormTiles:
    """Operands, parameters and results of a norm in SBUF: a norm's program derives from it."""

    def __init__(
        self,
        b: Builder,
        planes: Planes,
        norm: Norm,
        loaded: tuple[str, ...],
        stored: str,
        held: int,
        parameters: dict[str, bool],
    ) -> None:
        """Tensors `loaded` and `stored`, `held` float32 work tiles, parameters if present."""
        self.b, self.planes, self.norm = b, planes, norm
        self.partitions = planes.repeats * planes.rows
        shape = (planes.whole,)
        self.hbm = {n: b.hbm(n, shape, norm.dtype, Role.INPUT) for n in loaded}
        self.out = b.hbm(stored, shape, norm.dtype, Role.OUTPUT)
        size = planes.per_row * itemsize(norm.dtype) * len(loaded)
        self.resident = size <= RESIDENT_BYTES
        parts = planes.chunks if self.resident else 1
        width = planes.width
        self.tiles = {
            n: b.sbuf(f"{n} tile", width, norm.dtype, slots=2, parts=parts) for n in loaded
        }
        self.made = [b.sbuf(f"work {k}", width, "float32", slots=2) for k in range(held)]
        self.result = b.sbuf(f"{stored} tile", width, norm.dtype, slots=2)
        self.parameters: dict[str, Buffer] = {}
        self.small: dict[str, Buffer] = {}
        wide = planes.outer if norm.outer else 1
        for name, present in parameters.items():
            if present:
                length = planes.rows * wide
                self.parameters[name] = b.hbm(name, (length,), norm.parameters, Role.WEIGHT)
                self.small[name] = b.sbuf(f"{name} tile", wide, norm.parameters, slots=2)

    def column(self, name: str, count: int = 1) -> Buffer:
        """A small float32 tile, made at first use."""
        if name not in self.small:
            slots = 2 if count <= 512 else 1
            self.small[name] = self.b.sbuf(name, count, "float32", slots=slots)
        return self.small[name]

    def at(self, name: str, partitions: int, offset: Affine | int = 0) -> Access:
        return self.small[name].rows(partitions, 1, offset)

    def statistic(self, name: str, role: Role) -> Buffer:
        return self.b.hbm(name, (self.partitions,), "float32", role)

    def of_partitions(self, hbm: Buffer, first: Affine, partitions: int) -> Access:
        return hbm.box((1, partitions), (1, 1), at=first)

    def bring(self, chunk: Chunk, first: Affine, partitions: int) -> None:
        for name, hbm in self.hbm.items():
            if not self.resident:
                self.b.fresh(self.tiles[name])
            self.b.load(
                self.tile(name, partitions, chunk), self.planes.box(hbm, first, partitions, chunk)
            )

    def tile(self, name: str, partitions: int, chunk: Chunk) -> Access:
        return self.shaped(self.tiles[name], partitions, chunk, resident=self.resident)

    def shaped(
        self, buffer: Buffer, partitions: int, chunk: Chunk, *, resident: bool = False
    ) -> Access:
        """[partitions, outer, inner] of a work tile."""
        planes, part = (chunk.inner, chunk.outer), chunk.number if resident else 0
        return buffer.lanes(partitions, planes, (1, chunk.inner), part=part)

    def bring_parameters(self, row: Affine, rows: int, repeats: int) -> None:
        wide = self.planes.outer if self.norm.outer else 1
        for name, hbm in self.parameters.items():
            tile = self.small[name]
            self.b.fresh(tile)
            for r in range(repeats):
                source = hbm.box((wide, rows), (1, wide), at=row * wide)
                self.b.load(tile.rows(rows, wide, r * rows * wide), source)

    def repeated(self, name: str, partitions: int, chunk: Chunk) -> Access:
        """A parameter of the outer dimension, for every inner element."""
        tile = self.small[name]
        return tile.lanes(partitions, (1, chunk.outer), (0, chunk.inner), at=chunk.o0)
