"""How the contraction of an operand lies on the array, and how much of it a transfer takes."""

from dataclasses import dataclass

from ...isa import itemsize
from ..limits import P

__all__ = [
    "K_GROUP",
    "LONG_GROUP",
    "NATURAL_BYTES",
    "Packing",
    "group_of",
    "natural_slots",
    "parts_of_row",
]

K_GROUP = 4  # tiles of K per transfer, at most: chosen
LONG_GROUP = 8  # the same of products of few rows, which DMA bounds (chosen)
NATURAL_BYTES = 8192  # per row of what is loaded to be transposed: DMA is at its best from 4 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How the contraction lies on the array: `x4` elements of K in each of 128 rows."""

    dtype: str  # of the elements the array multiplies
    per_row: int = 1  # 2 for double_row, 4 for MX
    most: int = K_GROUP  # tiles of K per transfer

    @property
    def tile_k(self) -> int:
        return P * self.per_row

    @property
    def mx(self) -> bool:
        return self.per_row == 4


def group_of(k: int, packing: Packing) -> int:
    """Tiles of K in a transfer; the last one has what is left.

    Of fewer than two whole groups half as many: work starts earlier.
    """
    tiles, most = -(-k // packing.tile_k), packing.most
    return most // 2 if most < tiles < 2 * most else min(most, tiles)


def parts_of_row(k: int, packing: Packing, group: int) -> int:
    """How many parts of K one row loaded to be transposed covers."""
    size = 2 if packing.mx else itemsize(packing.dtype)
    return max(1, min(int(NATURAL_BYTES / size), k) // (group * packing.tile_k))


def natural_slots(block: int) -> int:
    """Enough that the next block is loaded while this one is used."""
    return 2 if block <= P else 4
