"""How rows lie on partitions: one on each, several short ones together, or a long one in pieces.

Memory is [rows, columns, inner], and `columns` is what is reduced. A line is what one partition
holds: some blocks of [columns, inner], or one piece of a block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType

from ..limits import P
from .joined import block_of
from .values import NEUTRAL, Kind, RowStep, Values, step

__all__ = ["JOINED", "Layout", "layout_of", "lies_in_rows", "side_by_side", "spread"]

SHORT = 1024  # elements up to which rows lie side by side (chosen)
# The same where a step reads one value a row, which then has to be repeated (chosen: instructions
# of their own cost more than what longer lines save).
SPREAD = 160
START = 200  # elements that a partition works through while a tile starts (chosen)
LINE = 2048  # elements of a line of short rows (chosen: 8 KiB of float32 have DMA's full rate)
# Elements that a partition works through while a reduction's pieces are joined (chosen: 0.6 to 1.4
# us, by the operation and the chip).
JOINED = 1500
UNEVEN = 1600, 2640  # the same, once and for each, if a last piece lacks elements (chosen)
FLOATS = ("float32", "bfloat16", "float16")
PIECE = 64  # least elements of a piece of a long row (chosen: what an instruction takes at least)
WIDE_PIECE = 256  # the same where inner elements are kept (chosen)
LONG = 8192  # elements of a block that is worth laying out in pieces for (chosen)
BLOCK = 4096  # elements of a block that one partition holds (chosen)
NARROW = 64  # inner elements up to which pieces bring their values together (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    rows: int
    columns: int
    inner: int = 1
    together: int = 1  # blocks of a line
    pieces: int = 1  # lines of a block
    whole: int = 1  # elements that no two pieces share
    # Elements of a row that lie together, if not all: in memory it is [columns / run, rows, run].
    run: int = 0

    @property
    def lines(self) -> int:
        return self.rows // self.together * self.pieces

    @property
    def rest(self) -> int:
        """Rows at the end, too few for a line."""
        return self.rows % self.together

    @property
    def reduced(self) -> int:
        """Elements of a line that make one of its values."""
        return ceil(self.columns // self.whole / self.pieces) * self.whole

    @property
    def missing(self) -> int:
        """Elements that the last piece of a row lacks."""
        return self.pieces * self.reduced - self.columns

    @property
    def width(self) -> int:
        """Elements of a line."""
        return self.reduced * self.values

    @property
    def values(self) -> int:
        """Of a COLUMN, for each line."""
        return self.together * self.inner


def layout_of(rows: int, columns: int, inner: int, values: Values, *, even: bool = False) -> Layout:
    """The lines that use most partitions; `even` if all pieces of a row shall be as long."""
    can_spread = all(_spreads(s, values.kinds) for s in values.steps)
    sums = any(s.kind is Kind.ROW for s in values.steps)
    repeats = any(s.kind is Kind.FULL and _by_partition(s, values.kinds) for s in values.steps)
    together = side_by_side(rows, columns * inner, SPREAD if repeats else SHORT)
    if not can_spread:
        together = 1
    pieces, whole = 1, block_of(values.steps)
    if together == 1 and not sums and (can_spread or inner == 1):
        block, uneven = columns * inner, not even and inner == 1 and _can_lack(values)
        evens = {True, not uneven}
        counts = (1, *(_pieces(rows, columns, inner, even=e, whole=whole) for e in evens))
        pieces = min(counts, key=lambda n: _work(block, n, values, whole))
        if inner > 1:
            pieces = counts[-1] if block >= LONG else 1
    return Layout(
        rows=rows, columns=columns, inner=inner, together=together, pieces=pieces, whole=whole
    )


def _can_lack(values: Values) -> bool:
    """Whether what changes no result can be put where pieces lack elements."""
    dtypes = {i.name: i.dtype for i in values.inputs} | {s.name: s.dtype for s in values.steps}
    dtypes |= {o.name: o.dtype for o in values.outputs}
    reductions = [s for s in values.steps if s.reduces]
    return all(
        s.attributes.get("op") in NEUTRAL and dtypes[s.reads[0]] in ("", *FLOATS)
        for s in reductions
    )


def _work(block: int, pieces: int, values: Values, whole: int) -> float:
    """Elements that a partition passes over for its piece of a block, joining included.

    An operation of two tensors counts twice, and what all rows share once: each partition loads it.
    """
    reductions = [s for s in values.steps if s.reduces]
    passes = [s for s in values.steps if s.kind is Kind.FULL]
    apart = [s for s in reductions if not any(s.is_sum_of(p) for p in passes)]
    shared = [i for i in values.inputs if i.kind is Kind.ROW]
    pairs = [s for s in passes if s.opcode in ("tensor_tensor", "scalar_tensor_tensor")]
    count = len(passes) + len(pairs) + len(apart) + len(shared)
    joined = 0 if pieces == 1 else JOINED * len(reductions)
    if block // whole % pieces:
        joined = UNEVEN[0] + UNEVEN[1] * len(reductions)
    return ceil(block // whole / pieces) * whole * count + joined


def lies_in_rows(rows: int, columns: int, inner: int) -> bool:
    """Whether a program over rows suits what is reduced along `columns` of [rows, columns, inner]:
    there are lines for the partitions, and a partition holds one whole.
    """
    pieces = _pieces(rows, columns, inner) if columns * inner >= LONG else 1
    return inner == 1 or (2 * rows * pieces > P and columns * inner // pieces <= BLOCK)


def side_by_side(rows: int, block: int, most: int = SHORT) -> int:
    """How many rows of `block` elements, at `most`, share a partition.

    All partitions have about as many, in as few tiles as those take; rows that are left over are
    worked on apart.
    """
    fits = max(1, min(LINE // block, ceil(rows / P))) if block <= most else 1
    tiles = ceil(rows / (P * fits))
    evenly = [ceil(rows / (P * k)) for k in (tiles, tiles + 1)]
    return min((_divisor(rows, fits), *evenly), key=lambda n: _passes(rows, n, block))


def _passes(rows: int, together: int, block: int) -> int:
    """Elements that a partition passes over in tiles of lines, and of rows that are left over,
    beside which no others are worked on.
    """
    lines, rest = divmod(rows, together)
    return ceil(lines / P) * (together * block + START) + ceil(rest / P) * (block + 2 * START)


def _pieces(rows: int, columns: int, inner: int, *, even: bool = True, whole: int = 1) -> int:
    """How many partitions share a block; unevenly if that is more than half as many again.

    whole  elements that no two partitions share
    """
    if 2 * rows > P or inner > NARROW:
        return 1
    most = max(1, min(P // rows, columns * inner // (PIECE if inner == 1 else WIDE_PIECE)))
    found = _divisor(columns // whole, most)
    uneven = ceil(columns // whole / ceil(columns // whole / most))
    return found if even or inner > 1 or 3 * found > 2 * uneven else uneven


def _divisor(count: int, most: int) -> int:
    return next((d for d in range(most, 1, -1) if count % d == 0), 1)


# --- steps ----------------------------------------------------------------------------------------


def spread(steps: Sequence[RowStep], kinds: Mapping[str, Kind]) -> Iterator[RowStep]:
    """The same values where a line has several of a COLUMN: an operand of one value a partition
    becomes a tensor that repeats.
    """
    for s in steps:
        yield from _SPREAD[s.opcode](s) if _by_partition(s, kinds) else (s,)


def _by_partition(s: RowStep, kinds: Mapping[str, Kind]) -> bool:
    repeats = s.opcode not in ("tensor_tensor", "select", "column_sum")
    return repeats and any(kinds[r] is Kind.COLUMN for r in s.reads[1:])


def _spreads(s: RowStep, kinds: Mapping[str, Kind]) -> bool:
    return s.opcode in _SPREAD or not _by_partition(s, kinds)


def _scalars_apart(s: RowStep) -> Iterator[RowStep]:
    """(x op0 a) op1 b, an instruction for each."""
    value, *operands = s.reads
    given = s.attributes
    ops = [k for k in (0, 1) if f"op{k}" in given]
    for k in ops:
        name = s.name if k == ops[-1] else f"{s.name} first"
        if f"imm{k}" in given:
            scalars = {f"{key}0": given[f"{key}{k}"] for key in ("op", "imm", "reverse")
                   if f"{key}{k}" in given}  # fmt: skip
            yield step(name, "tensor_scalar", value, kind=s.kind, **scalars)
        else:
            pair = [value, operands.pop(0)]
            if given.get(f"reverse{k}"):
                pair.reverse()
            yield step(name, "tensor_tensor", *pair, kind=s.kind, op=given[f"op{k}"])
        value = name


def _bias_apart(s: RowStep) -> Iterator[RowStep]:
    """f(scale * x + bias)"""
    value, bias = s.reads
    scale, first = float(s.attributes.get("scale", 1.0)), f"{s.name} first"
    if scale != 1:
        yield step(f"{s.name} scaled", "tensor_scalar", value, kind=s.kind, op0="multiply",
                   imm0=scale)  # fmt: skip
        value = f"{s.name} scaled"
    yield step(first, "tensor_tensor", value, bias, kind=s.kind, op="add")
    yield step(s.name, "activation", first, kind=s.kind, op=s.attributes["op"])


def _shift_apart(s: RowStep) -> Iterator[RowStep]:
    """exp(x - c)"""
    value, shift = s.reads
    first = f"{s.name} first"
    yield step(first, "tensor_tensor", value, shift, kind=s.kind, op="subtract")
    yield step(s.name, s.opcode, first, kind=s.kind)


def _factor_apart(s: RowStep) -> Iterator[RowStep]:
    """(x op0 c) op1 other"""
    value, c, other = s.reads
    first = f"{s.name} first"
    yield step(first, "tensor_tensor", value, c, kind=s.kind, op=s.attributes["op0"])
    yield step(s.name, "tensor_tensor", first, other, kind=s.kind, op=s.attributes["op1"])


_SPREAD: Mapping[str, Callable[[RowStep], Iterator[RowStep]]] = MappingProxyType(
    {
        "tensor_scalar": _scalars_apart,
        "scalar_tensor_tensor": _factor_apart,
        "activation": _bias_apart,
        "exponential": _shift_apart,
    }
)
