"""Data movement as engine programs: transposes of matrices.

Copies and casts are `pointwise` programs without arithmetic.
"""

from math import ceil

from ..chip import Chip
from ..isa import Affine, Builder, Program, Role, itemsize
from .limits import P

__all__ = ["transpose"]

WIDE = 2048  # columns of the source loaded together


def transpose(
    rows: int, columns: int, *, chip: Chip, dtype: str = "bfloat16", cores: int = 1
) -> Program:
    """out[c, r] = in[r, c]; blocks of 128 x 128 turn on the Tensor engine, four a PSUM bank.

    Rows of the source are split over the cores.
    """
    rows = ceil(rows / cores)
    b = Builder(f"transpose {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (columns, rows), dtype, Role.OUTPUT)
    wide = min(columns, WIDE)
    natural = b.sbuf("natural", 4 * wide, dtype, slots=2)
    bank = int(chip.psum.bank_bytes_per_partition / itemsize(dtype))
    transposed = b.psum("transposed", min(4 * P, bank), dtype, slots=4)
    result = b.sbuf("result", 4 * P, dtype, slots=4)
    for r0, some in b.tiles(rows, 4 * P):
        blocks = [(k, min(P, some - k * P)) for k in range(ceil(some / P))]
        for c0, width in b.tiles(columns, wide):
            b.fresh(natural)
            for k, size in blocks:
                from_hbm = source.rows(size, width, (r0 + k * P) * columns + c0)
                b.load(natural.rows(size, width, Affine(k * wide)), from_hbm)
            for c, count in b.tiles(width, P):
                b.fresh(transposed, result)
                for k, size in blocks:
                    block = natural.rows(size, count, c + k * wide)
                    b.emit("nc_transpose", transposed.rows(count, size, Affine(k * P)), block)
                b.emit("tensor_copy", result.rows(count, some), transposed.rows(count, some))
                b.store(out.rows(count, some, (c0 + c) * rows + r0), result.rows(count, some))
    return b.build()
