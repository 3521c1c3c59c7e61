"""Elementwise steps over operands that repeat: along rows, down columns, or everywhere."""

from collections.abc import Sequence
from math import ceil

from ..calls import Target, TensorArg
from ..isa import Access, Affine, Builder, Program, Role, itemsize
from .limits import TILE_BYTES, P, evenly
from .pointwise import Step, emit_steps, results_of
from .rows.layout import side_by_side

__all__ = ["alike", "broadcast", "how_it_repeats"]


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


def alike(kinds: Sequence[str], operands: Sequence[TensorArg], out: TensorArg) -> list[str]:
    """The kinds, where only operands that repeat with the rows of the program do: others are
    "other".
    """
    each = _columns(operands, kinds, out)
    fits = {"row": each, "column": out.numel // max(1, each)}
    return [
        kind if t.numel == fits.get(kind, t.numel) else "other"
        for t, kind in zip(operands, kinds, strict=True)
    ]


def broadcast(
    name: str,
    steps: Sequence[Step],
    operands: Sequence[TensorArg],
    kinds: Sequence[str],
    out: TensorArg,
    target: Target,
) -> Program:
    """Rows on partitions, short ones side by side. A repeated row is loaded once for all; other
    patterns load as if full.
    """
    each = _columns(operands, kinds, out)
    all_rows = ceil(out.numel / each / target.cores)
    together = side_by_side(all_rows, each)
    rest, columns = all_rows % together, each * together
    held = [itemsize(t.dtype) for t in operands] + [itemsize(s.dtype) for s in steps]
    width = int(target.chip.sbuf.usable_bytes_per_partition / (2 * sum(held)))
    width = evenly(columns, max(1, min(width, int(TILE_BYTES / max(held)))))
    width = width if together == 1 else columns
    b = Builder(name, cores=target.cores)
    read = [
        _Operand(b, f"in{k}", kind, t.dtype, (all_rows, together, each), width)
        for k, (t, kind) in enumerate(zip(operands, kinds, strict=True))
    ]
    result = b.hbm("out", (all_rows, each), out.dtype, Role.OUTPUT)
    results = results_of(b, steps, width)

    def tile(row: Affine, beside: int, lines: int, c0: Affine, count: int) -> None:
        for operand in read:
            if not operand.repeats:
                operand.load(row, beside, c0, lines, count)
        operands = [o.tile_of(beside, lines, count) for o in read]
        done = emit_steps(b, steps, results, operands, lines, count)
        last = done[-1] if done else read[0].tile.rows(lines, count)
        line = ((each * beside, lines), (1, count))
        to = result.box(*line, at=row * each + c0)
        b.store(to, last)

    for c0, count in b.tiles(columns, width):
        for operand in read:
            if operand.repeats:
                operand.load(Affine(), together, c0, P, count)
        if rest:  # rows that make no line, one on each partition
            for r0, size in b.tiles(rest, P):
                tile(r0 + (all_rows - rest), 1, size, Affine(), each)
        for r0, size in b.tiles(all_rows // together, P):
            tile(r0 * together, together, size, c0, count)
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
    """An operand in HBM, and its tile in SBUF.

    lines  rows of all, how many of them make a line, and the elements of a row
    """

    def __init__(
        self, b: Builder, name: str, kind: str, dtype: str, lines: tuple[int, int, int], width: int
    ) -> None:
        self.b, (rows, together, self.columns) = b, lines
        self.repeats, self.one_a_row = kind in ("row", "one"), kind in ("column", "one")
        row = 1 if self.one_a_row else self.columns
        self.hbm = b.hbm(name, (1 if self.repeats else rows, row), dtype, Role.INPUT)
        self.wide = together if self.one_a_row else width
        if self.repeats and together > 1:  # read once, whatever lies beside each other
            self.wide = row
        self.tile = b.sbuf(f"{name} tile", self.wide, dtype, slots=2)

    def load(self, row: Affine, beside: int, c0: Affine, lines: int, columns: int) -> None:
        """`columns` elements from c0 on of lines of `beside` rows, the first of which is `row`."""
        self.b.fresh(self.tile)
        wide, c0 = (beside, Affine()) if self.one_a_row else (columns, c0)
        each = self.hbm.shape[1]
        pitch = each * beside
        if self.repeats:
            wide, pitch = wide // beside, 0
        line = ((pitch, lines), (1, wide))
        source = self.hbm.box(*line, at=row * each + c0)
        self.b.load(self.tile.rows(lines, wide), source)

    def tile_of(self, beside: int, lines: int, columns: int) -> Access:
        """The operand for every element of a tile."""
        across, along = int(not self.repeats), int(not self.one_a_row)
        each = columns // beside
        if across == along:  # a number for all, or a value an element
            return self.tile.box((self.wide, lines), (along, columns))
        across *= 1 if self.one_a_row else each
        pattern = ((self.wide, lines), (across, beside), (along, each))
        return self.tile.box(*pattern)
