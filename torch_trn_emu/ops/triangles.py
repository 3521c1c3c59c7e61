"""Triangles of matrices: rows on partitions, only what is kept is loaded, GpSimd cuts the diagonal.

A tile of rows has three parts: columns that all its rows keep, a band that the diagonal crosses,
and columns that none keeps, which are zeros. Of many small matrices each has a partition, or
several share one, and a mask selects what is kept.
"""

from math import ceil

from ..calls import Call, Target
from ..calls.labels import labelled
from ..isa import Affine, Builder, Program, Role, itemsize
from ..kernels.limits import P
from .op import Lowered, Lowering

__all__ = ["triangle"]

MASKED = 4096  # elements of a partition that are masked at once (chosen)
MATRIX_CYCLES, TILE_CYCLES = 1700, 3000  # of a tile of rows, of a tile of matrices (inferred)
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


def many_triangles(
    batch: int, rows: int, columns: int, *, diagonal: int, lower: bool, dtype: str,
    cores: int = 1,
) -> Program:  # fmt: skip
    """As `triangular`, with matrices on partitions, a band of rows at once."""
    share, area = ceil(batch / cores), rows * columns
    band = min(rows, max(1, MASKED // columns))
    together = max(1, min(ceil(share / P), MASKED // area))  # of matrices on a partition
    b = Builder(f"triangles {batch}x{rows}x{columns}", cores=cores)
    source = b.hbm("in", (share, area), dtype, Role.INPUT)
    out = b.hbm("out", (share, area), dtype, Role.OUTPUT)
    data = b.sbuf("data", together * band * columns, dtype, slots=2)
    mask, zero = b.sbuf("mask", band * columns, "float32"), b.sbuf("zero", 1, dtype)
    b.emit("memset", zero.rows(P, 1), value=0.0)
    for r0 in range(0, rows, band):
        count = min(band, rows - r0)
        some = count * columns
        for row in range(count):
            first, last = _kept(r0 + row + diagonal, columns, lower)
            cuts = ((0, first, 0.0), (first, last, 1.0), (last, columns, 0.0))
            for begin, end, value in cuts:
                if end > begin:
                    tile = mask.rows(P, end - begin, row * columns + begin)
                    b.emit("memset", tile, value=value)
        for m0, size in b.tiles(share, P * together):
            full, rest = divmod(size, together)
            for parts, each, m in ((full, together, m0), (1, rest, m0 + full * together)):
                if not parts * each:
                    continue
                b.fresh(data)
                tile, at = data.lanes(parts, (some, each), (1, some)), m * area + r0 * columns
                there = ((each * area, parts), (area, each), (1, some))
                b.load(tile, source.box(*there, at=at))
                kept = mask.lanes(parts, (0, each), (1, some))
                nothing = zero.lanes(parts, (0, each), (0, some))
                b.emit("select", tile, kept, tile, nothing)
                b.store(out.box(*there, at=at), tile)
    return b.build()


def _kept(corner: int, columns: int, lower: bool) -> tuple[int, int]:
    """The columns that a row keeps, which meets the diagonal at `corner`."""
    if lower:
        return 0, _within(corner + 1, columns)
    return _within(corner, columns), columns


def _small(share: int, rows: int, columns: int) -> bool:
    """Whether matrices on partitions take less time, by estimates of cycles."""
    area = rows * columns
    bands = ceil(area / MASKED)
    tiles = ceil(share / (P * max(1, MASKED // area)))
    masked = ceil(share / P) * area * 2 + tiles * bands * TILE_CYCLES
    return share > 1 and masked < share * ceil(rows / P) * MATRIX_CYCLES


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
        batch = x.numel // (rows * columns)
        shared = batch >= target.cores  # else a core has every other tile
        small = shared and _small(ceil(batch / target.cores), rows, columns)
        program = (many_triangles if small else triangular)(
            batch,
            rows,
            columns,
            diagonal=int(call.argument(1, 0)),
            lower=lower,
            dtype=x.dtype,
            cores=target.cores,
        )
        return (labelled(program, {"in": x, "out": call.out}) if shared else program,)

    return lowering
