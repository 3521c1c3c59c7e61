"""Elementwise steps over operands that repeat: along rows, down columns, or everywhere."""

from collections.abc import Callable, Sequence
from math import ceil

from ..isa import Access, Affine, Buffer, Builder, Program, Role, itemsize, rows_of
from .call import Target, TensorArg
from .limits import TILE_BYTES, P
from .pointwise import Step

__all__ = ["broadcast", "how_it_repeats"]


def how_it_repeats(t: TensorArg, out: TensorArg) -> str:
    """How an operand repeats: "full", "row" (leading dims), "column" (trailing), "one", "other"."""
    if t.numel == out.numel:
        return "full"
    if t.numel == 1:
        return "one"
    rank = len(out.shape)
    shape = (1,) * (rank - len(t.shape)) + t.shape
    same = [a == b for a, b in zip(shape, out.shape, strict=False)]
    first = next(k for k, size in enumerate(shape) if size != 1)
    if all(same[first:]):  # worth its place on every partition when there are rows for them
        return "row" if out.numel >= P * t.numel or t.numel <= P else "other"
    last = max(k for k, size in enumerate(shape) if size != 1)
    if all(same[: last + 1]):  # its rows lie on partitions, which should not be few
        return "column" if 2 * t.numel >= P or out.numel <= P * t.numel else "other"
    return "other"


def broadcast(
    name: str,
    steps: Sequence[Step],
    operands: Sequence[TensorArg],
    kinds: Sequence[str],
    out: TensorArg,
    target: Target,
) -> Program:
    """Rows on partitions. A repeated row is loaded once for all; other patterns load as if full."""
    columns = _columns(operands, kinds, out)
    rows = ceil(out.numel / columns / target.cores)
    held = [itemsize(t.dtype) for t in operands] + [itemsize(s.dtype) for s in steps]
    width = int(target.chip.sbuf.usable_bytes_per_partition / (2 * sum(held)))
    width = max(1, min(columns, width, int(TILE_BYTES / max(held))))
    b = Builder(name, cores=target.cores)
    read = [
        _Operand(b, f"in{k}", kind, t.dtype, rows, columns, width)
        for k, (t, kind) in enumerate(zip(operands, kinds, strict=True))
    ]
    result = b.hbm("out", (rows, columns), out.dtype, Role.OUTPUT)
    done = [b.sbuf(f"step {k}", width, s.dtype, slots=2) for k, s in enumerate(steps)]
    for c0, count in b.tiles(columns, width):
        for operand in read:
            if operand.repeats:
                operand.load(Affine(), c0, P, count)
        for r0, size in b.tiles(rows, P):
            for operand in read:
                if not operand.repeats:
                    operand.load(r0, c0, size, count)
            _emit(b, steps, done, [o.tile_of for o in read], size, count)
            last = done[-1] if done else read[0].tile
            to = rows_of(result, size, count, r0 * columns + c0)
            b.store(to, rows_of(last, size, count))
    return b.build()


def _columns(operands: Sequence[TensorArg], kinds: Sequence[str], out: TensorArg) -> int:
    """The length of a row: what the repeated row holds, else what one column's value covers."""
    for t, kind in zip(operands, kinds, strict=True):
        if kind == "row":
            return t.numel
    for t, kind in zip(operands, kinds, strict=True):
        if kind == "column":
            return max(1, out.numel // t.numel)
    return out.shape[-1] if out.shape and out.shape[-1] else 1


class _Operand:
    """An operand in HBM, and its tile in SBUF."""

    def __init__(
        self, b: Builder, name: str, kind: str, dtype: str, rows: int, columns: int, width: int
    ) -> None:
        down, across = kind in ("row", "one"), kind in ("column", "one")
        self.b, self.repeats, self.one_a_row = b, down, across
        shape = (1 if down else rows, 1 if across else columns)
        self.hbm = b.hbm(name, shape, dtype, Role.INPUT)
        self.tile = b.sbuf(f"{name} tile", 1 if across else width, dtype, slots=2)

    def load(self, r0: Affine, c0: Affine, rows: int, columns: int) -> None:
        pitch, wide = self.hbm.shape[1], 1 if self.one_a_row else columns
        offset = r0 * pitch + (0 if self.one_a_row else c0)
        pattern = ((0 if self.repeats else pitch, rows), (1, wide))
        self.b.fresh(self.tile)
        source = Access(buffer=self.hbm, offset=offset, pattern=pattern)
        self.b.load(rows_of(self.tile, rows, wide), source)

    def tile_of(self, rows: int, columns: int) -> Access:
        """The operand for every element of a tile."""
        if self.one_a_row:
            return Access(buffer=self.tile, pattern=((1, rows), (0, columns)))
        return rows_of(self.tile, rows, columns)


def _emit(
    b: Builder,
    steps: Sequence[Step],
    done: Sequence[Buffer],
    operands: Sequence[Callable[[int, int], Access]],
    rows: int,
    columns: int,
) -> None:
    """The steps on one tile; operands below 0 are the results before."""
    for n, s in enumerate(steps):
        b.fresh(done[n])
        reads = [
            rows_of(done[n + r], rows, columns) if r < 0 else operands[r](rows, columns)
            for r in s.reads
        ]
        s.emit(b, rows_of(done[n], rows, columns), reads)
