"""The largest of every row by GpSimd's topk, which works on eight groups of 16 partitions at once.

A row is cut over one or more groups. Each gives its k largest, in no order that is relied on, and
where they were; of several groups the k largest are found by topk again. At the end each row has a
partition and is put in order by max8 and nc_match_replace8. Between these steps rows change their
partitions by way of memory.

Source: nki-library, the chunked top-k of GpSimd (the steps, and how an element's number in a group
follows from its partition and column).
"""

from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from .limits import P
from .pieces import cut_rows
from .sort_keys import PADDING, Keys

__all__ = ["group_cycles", "groups_of", "largest_of_groups"]

LANES, GROUPS = 16, 8  # partitions of a group, groups [isa]
ELEMENTS = 65536  # one more than topk takes of a group [isa]
EXACT = 2**24  # integers below it are exact in the engines' float32
TILE = 1500  # cycles that eight groups take at least, their columns and transfers (inferred)
BETWEEN = 6000  # cycles that rows take by way of memory, about 5 us (inferred)


def groups_of(rows: int, columns: int, k: int) -> int:
    """Groups that a row is cut over; 0 if topk cannot take it."""
    if columns >= EXACT:
        return 0
    groups = max(1, 1 << (max(1, GROUPS // rows).bit_length() - 1))
    while groups > 1 and ceil(k / LANES) > ceil(columns / (LANES * groups)):
        groups //= 2
    while LANES * ceil(columns / (LANES * groups)) >= ELEMENTS:
        groups *= 2
    width, kept = ceil(columns / (LANES * groups)), ceil(k / LANES)
    fits = groups <= GROUPS and kept <= width and LANES * kept * groups < ELEMENTS
    return groups if fits and LANES * kept < ELEMENTS // 2 else 0


def group_cycles(rows: int, columns: int, k: int) -> float:
    """About how many cycles it takes: GpSimd's of topk, then Vector's of order."""
    groups = groups_of(rows, columns, k)
    if not groups:
        return float("inf")
    kept = LANES * ceil(k / LANES)
    found = TILE + 4 * ceil(columns / (LANES * groups)) + kept
    total: float = ceil(rows * groups / GROUPS) * found + BETWEEN
    if groups > 1:
        total += ceil(rows / GROUPS) * (4 * groups * kept / LANES + kept + TILE) + BETWEEN
    return total + ceil(rows / P) * 2 * (kept + 250) * ceil(k / 8)


def largest_of_groups(
    rows: int, columns: int, k: int, *, sign: float, chip: Chip, dtype: str, cores: int = 1,
    first: int = 0,
) -> Program:  # fmt: skip
    """values[r, :], index[r, :] = the k largest of in[r, :] * sign, times sign, and where, without
    the `first` largest. For bfloat16, which is what topk reads; NaN is larger than infinity.
    """
    rows = ceil(rows / cores)
    b = Builder(f"top {k} of {rows}x{columns} by groups", cores=cores)
    return _Groups(b, rows, columns, range(first, k), sign, dtype).build()


class _Groups:
    def __init__(
        self, b: Builder, rows: int, columns: int, stored: range, sign: float, dtype: str
    ) -> None:
        self.b, self.rows, self.columns = b, rows, columns
        self.first, self.k = stored.start, len(stored)
        self.keys = Keys(b, sign, dtype)
        self.groups = groups_of(rows, columns, stored.stop)
        self.pieces = LANES * self.groups
        self.wide = ceil(columns / self.pieces)
        self.each = ceil(stored.stop / LANES)  # columns of a group's largest
        self.kept = LANES * self.each
        self.rounds = ceil(stored.stop / 8)
        self.source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
        self.values = b.hbm("values", (rows, self.k), dtype, Role.OUTPUT)
        self.index = b.hbm("index", (rows, self.k), "int32", Role.OUTPUT)
        self.raw, self.data, self.spare = (
            b.sbuf(n, self.wide, dtype, slots=2) for n in ("raw", "data", "spare")
        )
        self.best = b.sbuf("best", self.each, dtype, slots=2)
        self.number, self.column = (
            b.sbuf(n, self.each, "int32", slots=2) for n in ("number", "column")
        )
        if self.filled:
            self.filling = b.sbuf("filling", self.wide, dtype)

    def build(self) -> Program:
        b, wide = self.b, self.groups * self.kept
        found = self._memory("of groups", wide)
        if self.filled:
            b.emit("memset", self.filling.rows(P, self.wide), value=-PADDING)
        start = self._starts()
        for r0, size in b.tiles(self.rows, P // self.pieces):
            self._of_rows(r0, size, start, found)
        if self.groups == 1:
            self._order(found, None)
            return b.build()
        again = self._memory("of rows", self.kept)
        for r0, size in b.tiles(self.rows, GROUPS):
            self._of_groups(r0, size, found, again)
        self._order(again, found[1])
        return b.build()

    @property
    def filled(self) -> bool:
        return self.columns < self.pieces * self.wide

    def _memory(self, of: str, columns: int) -> tuple[Buffer, Buffer]:
        """The largest of `of`, and where they were."""
        b, shape = self.b, (self.rows, columns)
        dtype = self.source.dtype
        return (
            b.hbm(f"largest {of}", shape, dtype, Role.SCRATCH),
            b.hbm(f"places {of}", shape, "int32", Role.SCRATCH),
        )

    def _starts(self) -> Access:
        """The column where each partition's group starts."""
        b = self.b
        start = b.sbuf("start", 1, "int32").rows(P, 1)
        b.emit("iota", start, channel=1, step=0, base=0)
        b.emit("tensor_scalar", start, start, op0="bitwise_and", imm0=self.pieces - LANES)
        there = b.sbuf("first column", 1, "float32").rows(P, 1)
        b.emit("tensor_scalar", there, start, op0="multiply", imm0=float(self.wide))
        return there

    # --- one group or several of a row ---

    def _of_rows(self, r0: Affine, size: int, start: Access, found: tuple[Buffer, Buffer]) -> None:
        b, many = self.b, size * self.pieces
        b.fresh(self.raw, self.data, self.spare)
        self._load(r0, size)
        raw, data, spare = (t.rows(many, self.wide) for t in (self.raw, self.data, self.spare))
        self.keys.make(data, raw, spare)
        if self.filled:
            self._fill(size)
        self._topk(data, self.wide, many)
        column = self.column.rows(many, self.each)
        here = start.buffer.rows(many, 1)
        b.emit("tensor_scalar", column, column, here, op0="add")
        self._keep(r0 * (self.groups * self.kept), many, found)

    def _load(self, r0: Affine, size: int) -> None:
        b, wide = self.b, self.wide
        if self.filled:
            b.emit("memset", self.raw.rows(size * self.pieces, wide), value=0.0)
        at, rows = r0 * self.columns, (size, self.pieces, self.columns)
        for to, there in cut_rows(b, self.raw, self.source, rows, self.columns, wide, at):
            b.load(to, there)

    def _fill(self, size: int) -> None:
        """What lies past a row is less than all that it has."""
        b, (full, rest) = self.b, divmod(self.columns, self.wide)
        with b.loop(size) as r:
            first = r * (self.pieces * self.wide)
            if rest:
                at, count = first + full * self.wide + rest, self.wide - rest
                source = self.filling.rows(1, count)
                b.emit("dma_copy", self.data.rows(1, count, at), source, queue="fill")
            beyond = full + (rest > 0)
            if beyond < self.pieces:
                many = self.pieces - beyond
                to = self.data.rows(many, self.wide, first + beyond * self.wide)
                b.emit("dma_copy", to, self.filling.rows(many, self.wide), queue="fill")

    def _topk(self, data: Access, wide: int, many: int) -> None:
        """The largest of each group, and their columns as if a group's partitions were one row."""
        b = self.b
        b.fresh(self.best, self.number, self.column)
        best, number, column = (
            t.rows(many, self.each) for t in (self.best, self.number, self.column)
        )
        b.emit("topk", (best, number), data, k=self.kept)
        b.emit("tensor_scalar", column, number, op0="bitwise_and", imm0=LANES - 1)
        b.emit("tensor_scalar", number, number, op0="right_shift", imm0=4)
        b.emit("scalar_tensor_tensor", column, column, number, op0="multiply", imm0=float(wide),
               op1="add")  # fmt: skip

    def _keep(self, at: Affine, many: int, to: tuple[Buffer, Buffer]) -> None:
        for hbm, tile in zip(to, (self.best, self.column), strict=True):
            there = hbm.box((self.each, many), (1, self.each), at=at)
            self.b.store(there, tile.rows(many, self.each))

    def _of_groups(
        self, r0: Affine, size: int, found: tuple[Buffer, Buffer], again: tuple[Buffer, Buffer]
    ) -> None:
        """The largest of what a row's groups gave, and their places among them."""
        b, many, wide = self.b, size * LANES, self.groups * self.each
        tile = b.sbuf(f"of groups {size}", wide, self.source.dtype, slots=2).rows(many, wide)
        b.fresh(tile.buffer)
        pattern = ((wide, many), (1, wide))
        at = r0 * (self.groups * self.kept)
        b.load(tile, found[0].box(*pattern, at=at))
        self._topk(tile, wide, many)
        self._keep(r0 * self.kept, many, again)

    # --- a partition of a row ---

    def _order(self, found: tuple[Buffer, Buffer], columns: Buffer | None) -> None:
        b, kept, eights = self.b, self.kept, 8 * self.rounds
        data = b.sbuf("largest", kept, self.source.dtype, slots=2)
        places = b.sbuf("places", kept, "int32", slots=2)
        best = b.sbuf("in order", eights, "float32", slots=2)
        of, picked = (b.sbuf(n, eights, "int32", slots=2) for n in ("of", "picked"))
        stored = b.sbuf("stored", self.k, self.source.dtype, slots=2)
        spare = b.sbuf("spare in order", self.k, "float32", slots=2)
        for r0, size in b.tiles(self.rows, P):
            b.fresh(data, places, best, of, picked, stored, spare)
            b.load(data.rows(size, kept), found[0].rows(size, kept, r0 * kept))
            b.load(places.rows(size, kept), found[1].rows(size, kept, r0 * kept))
            whole = data.rows(size, kept)
            with b.loop(self.rounds) as turn:
                eight, where = (t.rows(size, 8, turn * 8) for t in (best, of))
                b.emit("max8", eight, whole)
                b.emit("nc_match_replace8", (whole, where), whole, eight, imm=-PADDING)
            out = self._columns(r0, size, (places, of, picked), columns)
            at = r0 * self.k
            to = stored.rows(size, self.k)
            key = best.rows(size, self.k, self.first)
            self.keys.undo(to, key, spare.rows(size, self.k))
            b.store(self.values.rows(size, self.k, at), to)
            b.store(self.index.rows(size, self.k, at), out)

    def _columns(
        self, r0: Affine, size: int, tiles: tuple[Buffer, Buffer, Buffer], columns: Buffer | None
    ) -> Access:
        """What the places in order say: columns of the row, or places among those of its groups."""
        b, eights = self.b, 8 * self.rounds
        places, of, picked = tiles
        order, chosen = (t.rows(size, eights) for t in (of, picked))
        b.emit("nc_n_gather", chosen, places.rows(size, self.kept), order)
        if columns is None:
            return picked.rows(size, self.k, self.first)
        wide = self.groups * self.kept
        there = b.sbuf(f"columns of groups {size}", wide, "int32")
        b.load(there.rows(size, wide), columns.rows(size, wide, r0 * wide))
        b.emit("nc_n_gather", order, there.rows(size, wide), chosen)
        return of.rows(size, self.k, self.first)
