"""What the programs are cut to: the chip's sizes, equal on all chips, and shares of SBUF.

The chip's sizes are documented (`nki.language.tile_size` and the pages of `nki.isa`);
`validate` holds every program against them. Shares are chosen, so that what a program keeps at
once fits in a partition and a transfer is long enough for DMA's full rate.
"""

from math import ceil

__all__ = [
    "BANK",
    "BANKS",
    "BANK_BYTES",
    "BN_STATS",
    "SLOTS",
    "START",
    "TILE_BYTES",
    "WEIGHT_BYTES",
    "WIDE",
    "P",
    "evenly",
]

P = 128  # partitions of SBUF and PSUM (documented)
START = 32  # partitions at whose multiples an instruction may start (documented)
BANKS = 8  # of PSUM, per partition (documented)
BANK_BYTES = 2048  # of PSUM, per partition: what one product writes at most (documented)
BANK = BANK_BYTES // 4  # float32 elements of it
BN_STATS = 512  # elements that one bn_stats takes (documented)

SLOTS = 2  # of a tile that is moved: one moves while the other is worked on (chosen)
TILE_BYTES = 16 * 1024  # of one operand, per partition (chosen)
WEIGHT_BYTES = 64 * 1024  # of weights that stay in SBUF, per partition (chosen)
WIDE = 8192  # elements of a partition that one instruction works on (chosen; max8 takes 16384)


def evenly(extent: int, most: int, unit: int = 1) -> int:
    """The least multiple of `unit` that cuts `extent` into no more pieces than `most` does."""
    pieces = ceil(extent / most)
    return min(extent, ceil(extent / pieces / unit) * unit) if extent else 0
