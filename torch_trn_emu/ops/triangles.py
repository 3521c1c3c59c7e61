"""Triangles of matrices: rows on partitions, only what is kept is loaded, GpSimd cuts the diagonal.

A tile of rows has three parts: columns that all its rows keep, a band that the diagonal crosses,
and columns that none keeps, which are zeros.
"""

from math import ceil

from ..calls import Call, Target
from ..calls.labels import labelled
from ..isa import Affine, Builder, Program, Role, itemsize
from ..kernels.limits import P
from .op import Lowered, Lowering

__all__ = ["triangle"]

ROW_BYTES = 64 * 1024  # of a row that a partition holds whole (chosen)


def triangular(
    batch: int, rows: int, columns: int, *, diagonal: int, lower: bool, dtype: str,
    cores: int = 1,
) -> Program:  # fmt: skip
    """out[m, r, c] = in[m, r, c] where c <= r + diagonal (upper: >=), else 0."""
    share = ceil(batch / cores) if batch >= cores else batch
    tiles = [(r0, min(P, rows - r0)) for r0 in range(0, rows, P)]
    if batch < cores:  # every so manyth tile of rows, which has its share of the triangle
        tiles = tiles[::cores]
    b = Builder(f"triangle {batch}x{rows}x{columns}", cores=cores)
    source = b.hbm("in", (share * rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (share * rows, columns), dtype, Role.OUTPUT)
    data = b.sbuf("data", columns, dtype, slots=2)
    with b.loop(share) as matrix:
        for r0, size in tiles:
            b.fresh(data)
            at = matrix * (rows * columns) + r0 * columns
            kept, band, empty = _parts(r0 + diagonal, size, columns, lower)
            loaded = sorted(p for p in (kept, band) if p[1])
            if loaded:
                first, last = loaded[0][0], sum(loaded[-1])
                tile = data.rows(size, last - first, first)
                b.load(tile, source.rows(size, last - first, at + first))
            if band[1]:
                tile = data.rows(size, band[1], band[0])
                sign, base = (
                    (1, r0 + diagonal - band[0]) if lower else (-1, band[0] - r0 - diagonal)
                )
                b.emit("affine_select", tile, tile, channel=sign, step=-sign, base=base,
                       on_false=0.0)  # fmt: skip
            if empty[1]:
                b.emit("memset", data.rows(size, empty[1], Affine(empty[0])), value=0.0)
            b.store(out.rows(size, columns, at), data.rows(size, columns))
    return b.build()


def _parts(
    corner: int, size: int, columns: int, lower: bool
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(first column, count) of what all rows keep, of the band, and of what none keeps.

    corner  where the first of `size` rows meets the diagonal
    """
    if lower:
        begin, end = _within(corner + 1, columns), _within(corner + size, columns)
        return (0, begin), (begin, end - begin), (end, columns - end)
    begin, end = _within(corner, columns), _within(corner + size - 1, columns)
    return (end, columns - end), (begin, end - begin), (0, begin)


def _within(column: int, columns: int) -> int:
    return max(0, min(column, columns))


def triangle(*, lower: bool) -> Lowering:
    """Tril or triu of every matrix."""

    def lowering(call: Call, target: Target) -> Lowered:
        x = call.tensors[0]
        rows, columns = x.shape[-2:]
        if columns * itemsize(x.dtype) > ROW_BYTES:
            raise KeyError(f"{call.name} of rows of {columns} elements")
        program = triangular(
            x.numel // (rows * columns),
            rows,
            columns,
            diagonal=int(call.argument(1, 0)),
            lower=lower,
            dtype=x.dtype,
            cores=target.cores,
        )
        shared = x.numel // (rows * columns) >= program.cores  # else a core has every other tile
        return (labelled(program, {"in": x, "out": call.out}) if shared else program,)

    return lowering
