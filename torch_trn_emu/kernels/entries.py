"""Entries of a table by index: picked from it, put into it, or added to it, as engine programs.

DMA moves an entry for each index, with descriptors made from the numbers of the entries, which
GpSimd computes because the Vector engine would round integers. Where most of a row is picked
element by element, the row is brought to SBUF and picked from there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Engine, Program, Role, itemsize
from .limits import TILE_BYTES, P
from .runs import clear, runs

__all__ = [
    "Indexed",
    "Term",
    "gather_entries",
    "integers",
    "pick_in_rows",
    "picks_in_sbuf",
    "scatter_entries",
]

PIECE_BYTES = 2048  # of a long entry that a partition takes at least (chosen)
TURN_S = 1.6e-6  # that an entry in pieces takes by itself: its index, its numbers (inferred)
PASS_S = 2e-6  # from the load of a tile to that of the next but one (inferred)
MOST = 512  # indices of a partition that are worked on together (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """An index tensor: one step of it passes `step` entries of the table; indices are < `size`."""

    size: int
    step: int = 1
    wraps: bool = False  # indices below 0 count from the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """`lead` x `rows` x `count` entries of `entry` elements, each found in a table.

    Entry (l, r, c) is number l * lead_step + r * row_step + c * column_step of the table, and
    what the terms add; its index is at l * places[0] + r * places[1] + c * places[2].
    """

    entries: int
    entry: int
    count: int
    terms: tuple[Term, ...]
    rows: int = 1
    lead: int = 1
    lead_step: int = 0
    row_step: int = 0
    column_step: int = 0
    places: tuple[int, int, int] = (0, 0, 1)

    @property
    def moved(self) -> int:
        """Entries picked, put or added."""
        return self.lead * self.rows * self.count

    @property
    def indices(self) -> int:
        """Elements of an index tensor."""
        sizes = zip((self.lead, self.rows, self.count), self.places, strict=True)
        return 1 + sum((n - 1) * step for n, step in sizes)

    @property
    def longest(self) -> str:
        """What cores share: the longest of what is looped over."""
        return max(("count", "rows", "lead"), key=lambda name: int(getattr(self, name)))

    @property
    def reach(self) -> int:
        """Entries that one value of (l, r, c) may find."""
        return 1 + sum((t.size - 1) * t.step for t in self.terms)

    def in_runs(self) -> "Indexed":
        """Rows of one entry as one row, of which a partition has several entries at once."""
        if self.rows == 1 or self.count != 1:
            return self
        lead, down, _ = self.places
        return replace(
            self, rows=1, row_step=0, count=self.rows, column_step=self.row_step,
            places=(lead, 0, down),
        )  # fmt: skip

    def spread(self, dtype: str, chip: Chip, cores: int) -> "Indexed":
        """Few long entries in pieces, one a partition: all DMA engines have some to bring."""
        if self.lead * self.rows != 1:
            return self
        dma, nbytes = chip.dma, self.entry * itemsize(dtype)
        rate = dma.engine_bytes_per_s / 2  # in and out
        turns = ceil(self.count / cores / dma.engines)
        whole_s = nbytes / TILE_BYTES * max(PASS_S, turns * TILE_BYTES / rate)
        apart_s = self.count * max(TURN_S, nbytes / cores / dma.engines / rate)
        most = min(P, int(nbytes / PIECE_BYTES))
        pieces = next((n for n in range(most, 1, -1) if self.entry % n == 0), 1)
        if apart_s >= 0.9 * whole_s or pieces < dma.engines:
            return self
        return replace(
            self,
            entries=self.entries * pieces,
            entry=self.entry // pieces,
            terms=tuple(replace(t, step=t.step * pieces) for t in self.terms),
            lead=self.count,
            rows=pieces,
            count=1,
            lead_step=self.column_step * pieces,
            row_step=1,
            column_step=0,
            places=(self.places[2], 0, 0),
        )

    def shared(self, cores: int) -> "Indexed":
        """One core's part."""
        part: Any = {self.longest: ceil(getattr(self, self.longest) / cores)}
        return replace(self, **part)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    """`rows` x `count` entries from `at` on, `pitch` apart; numbers count from entry `base`."""

    base: Affine
    at: Affine
    rows: int
    count: int
    pitch: int
    index: tuple[Affine, tuple[tuple[int, int], ...]]


def integers(b: Builder, opcode: str, *operands: Access, **attributes: Any) -> None:
    """An instruction on GpSimd, which keeps integers whole."""
    b.emit(opcode, *operands, engine=Engine.GPSIMD, **attributes)


class _Entries:
    """The numbers of the entries, and tiles of what is moved."""

    def __init__(self, b: Builder, spec: Indexed, dtype: str) -> None:
        self.b, self.spec, self.dtype = b, spec, dtype
        self.wide = min(spec.entry, int(TILE_BYTES / itemsize(dtype)))
        fits = max(1, int(TILE_BYTES / itemsize(dtype) / self.wide))
        length = ceil(spec.count / P) if spec.rows == 1 else spec.count
        self.together = max(1, min(fits, MOST, length))
        names = ["index"] + [f"index {k}" for k in range(1, len(spec.terms))]
        self.index = [b.hbm(n, (spec.indices,), "int32", Role.INPUT) for n in names]
        self.loaded = [b.sbuf(f"{n} tile", self.together, "int32", slots=2) for n in names]
        self.values = b.sbuf("entries", self.together * self.wide, dtype, slots=2)
        # A single row is cut over the partitions, which then are so many columns apart.
        self.row_step = spec.row_step if spec.rows > 1 else spec.column_step * self.together
        self.number = b.sbuf("numbers", self.together, "int32", slots=2) if self._made else None
        self.wrapped = b.sbuf("wrapped", self.together, "int32", slots=2)
        self.start = self._starts()

    @property
    def _made(self) -> bool:
        """Whether an entry's number is more than its index."""
        spec, first = self.spec, self.spec.terms[0]
        plain = len(spec.terms) == 1 and first.step == 1 and not first.wraps
        return not plain or bool(self.row_step or spec.column_step)

    def _starts(self) -> Buffer | None:
        """The numbers of a tile's entries without their indices."""
        spec = self.spec
        if not (self.row_step or spec.column_step):
            return None
        start = self.b.sbuf("starts", self.together, "int32")
        whole = start.rows(P, self.together)
        self.b.emit("iota", whole, channel=self.row_step, step=spec.column_step, base=0)
        return start

    def tiles(self) -> Iterator[_Tile]:
        """All entries; the body of `for` is emitted for each kind of tile."""
        b, spec = self.b, self.spec
        with b.loop(spec.lead) as lead:
            for tile in self._runs() if spec.rows == 1 else self._grid():
                base = tile.base + lead * spec.lead_step
                at = tile.at + lead * (spec.rows * spec.count)
                offset, pattern = tile.index
                index = (offset + lead * spec.places[0], pattern)
                yield replace(tile, base=base, at=at, index=index)

    def _grid(self) -> Iterator[_Tile]:
        """Rows on partitions."""
        spec, (_, down, across) = self.spec, self.spec.places
        for r0, rows in self.b.tiles(spec.rows, P):
            for c0, count in self.b.tiles(spec.count, self.together):
                yield _Tile(
                    base=r0 * spec.row_step + c0 * spec.column_step, at=r0 * spec.count + c0,
                    rows=rows, count=count, pitch=spec.count,
                    index=(r0 * down + c0 * across, ((down, rows), (across, count))),
                )  # fmt: skip

    def _runs(self) -> Iterator[_Tile]:
        """One row, cut over the partitions."""
        q, across = self.together, self.spec.places[2]
        for at, rows, count in runs(self.b, self.spec.count, q):
            index = (at * across, ((q * across, rows), (across, count)))
            base = at * self.spec.column_step
            yield _Tile(base=base, at=at, rows=rows, count=count, pitch=q, index=index)

    def numbers(self, tile: _Tile) -> Access:
        """What DMA makes its descriptors from."""
        b, size, count = self.b, tile.rows, tile.count
        offset, pattern = tile.index
        views = []
        for hbm, loaded in zip(self.index, self.loaded, strict=True):
            b.fresh(loaded)
            views.append(loaded.rows(size, count))
            b.load(views[-1], hbm.box(*pattern, at=offset))
        if self.number is None:
            return views[0]
        b.fresh(self.number, self.wrapped)
        number, parts = self.number.rows(size, count), []
        for view, term in zip(views, self.spec.terms, strict=True):
            parts.append(self._steps(view, term, size, count))
        if self.start:
            parts.append(self.start.rows(size, count))
        integers(self.b, "tensor_copy", number, parts[0])
        for part in parts[1:]:
            integers(self.b, "tensor_tensor", number, number, part, op="add")
        return number

    def _steps(self, index: Access, term: Term, size: int, count: int) -> Access:
        """An index in entries of the table."""
        if term.wraps:
            less = self.wrapped.rows(size, count)
            integers(self.b, "tensor_scalar", less, index, op0="less", imm0=0, op1="multiply",
                           imm1=term.size)  # fmt: skip
            integers(self.b, "tensor_tensor", index, index, less, op="add")
        if term.step != 1:
            integers(self.b, "tensor_scalar", index, index, op0="multiply", imm0=term.step)
        return index

    def pieces(self, tile: _Tile) -> Iterator[tuple[Affine, Access, int]]:
        """(first element of the entries, their tile in SBUF, elements of each) of a tile."""
        for e0, wide in self.b.tiles(self.spec.entry, self.wide):
            self.b.fresh(self.values)
            yield e0, self.values.rows(tile.rows, tile.count * wide), wide

    def table(self, hbm: Buffer, tile: _Tile, e0: Affine, wide: int) -> Access:
        """The entries that the numbers of a tile count in."""
        spec = self.spec
        reach = spec.reach + (tile.rows - 1) * self.row_step + (tile.count - 1) * spec.column_step
        offset = tile.base * spec.entry + e0
        return hbm.box((spec.entry, reach), (1, wide), at=offset)

    def dense(self, hbm: Buffer, tile: _Tile, e0: Affine, wide: int) -> Access:
        """Where a tile's entries lie one after the other."""
        entry = self.spec.entry
        inner = ((entry, tile.count), (1, wide)) if wide < entry else ((1, tile.count * wide),)
        pattern = ((tile.pitch * entry, tile.rows), *inner)
        return hbm.box(*pattern, at=tile.at * entry + e0)


def gather_entries(spec: Indexed, *, dtype: str, cores: int = 1) -> Program:
    """out[l, r, c, :] = table[number of (l, r, c), :]"""
    spec = spec.shared(cores)
    b = Builder(f"gather {spec.moved} entries of {spec.entry}", cores=cores)
    table = b.hbm("table", (spec.entries * spec.entry,), dtype, Role.WEIGHT)
    out = b.hbm("out", (spec.moved * spec.entry,), dtype, Role.OUTPUT)
    entries = _Entries(b, spec, dtype)
    for tile in entries.tiles():
        numbers = entries.numbers(tile)
        for e0, values, wide in entries.pieces(tile):
            source = entries.table(table, tile, e0, wide)
            b.emit("dma_gather", values, source, numbers, queue="gather")
            b.store(entries.dense(out, tile, e0, wide), values)
    return b.build()


def scatter_entries(
    spec: Indexed,
    *,
    dtype: str,
    adds: bool,
    cores: int = 1,
    scale: float = 1.0,
    repeated: bool = False,
    value: float | None = None,
    zeroed: bool = False,
) -> Program:
    """out[number of (l, r, c), :] = in[l, r, c, :] * scale, or += with `adds`.

    repeated  one element "in" stands for all; so does `value`
    zeroed    the table is cleared first
    """
    whole, spec = spec, spec.shared(cores)
    b = Builder(f"scatter {spec.moved} entries of {spec.entry}", cores=cores)
    if value is None:
        source = b.hbm("in", (1 if repeated else spec.moved * spec.entry,), dtype, Role.INPUT)
    out = b.hbm("out", (whole.entries * spec.entry,), dtype, Role.OUTPUT)
    entries = _Entries(b, spec, dtype)
    if zeroed:
        clear(b, out, ceil(out.elements / cores) if spec.moved > P else out.elements)
    length, constant = entries.values.row_elements, None
    if repeated or value is not None:
        constant = b.sbuf("constant", length, dtype).rows(P, length)
        if value is not None:
            b.emit("memset", constant, value=value)
        else:
            b.load(constant, source.box((0, P), (0, length)))
    opcode = "dma_scatter_add" if adds else "dma_scatter"
    for tile in entries.tiles():
        numbers = entries.numbers(tile)
        for e0, values, wide in entries.pieces(tile):
            if constant:
                values = constant.buffer.rows(tile.rows, tile.count * wide)
            else:
                b.load(values, entries.dense(source, tile, e0, wide))
            if scale != 1:
                b.emit("tensor_scalar", values, values, op0="multiply", imm0=scale)
            to = entries.table(out, tile, e0, wide)
            b.emit(opcode, to, values, numbers, queue="scatter")
    return b.build()


# --- from rows in SBUF ---


def picks_in_sbuf(columns: int, count: int, dtype: str, chip: Chip) -> bool:
    """Whether bringing rows whole is faster than a descriptor for each element picked."""
    if columns * itemsize(dtype) > 4 * TILE_BYTES:
        return False
    moving_s = columns * itemsize(dtype) / chip.dma.engine_bytes_per_s
    picking_s = 2 * count / chip.gpsimd_engine.clock_hz * chip.dma.engines / P
    return moving_s + picking_s < count * chip.dma.descriptor_min_s


def pick_in_rows(
    rows: int, columns: int, count: int, *, shared: bool, dtype: str, cores: int = 1
) -> Program:
    """out[r, c] = table[r, index[r, c]], or index[c] where all rows share the indices."""
    rows = ceil(rows / cores)
    b = Builder(f"pick {count} of {rows}x{columns}", cores=cores)
    table = b.hbm("table", (rows, columns), dtype, Role.INPUT)
    index = b.hbm("index", (1 if shared else rows, count), "int32", Role.INPUT)
    out = b.hbm("out", (rows, count), dtype, Role.OUTPUT)
    wide = min(count, int(TILE_BYTES / 4))
    data = b.sbuf("rows", columns, dtype, slots=2)
    places = b.sbuf("index tile", count if shared else wide, "int32", slots=1 if shared else 2)
    picked = b.sbuf("picked", wide, dtype, slots=2)
    if shared:
        every = index.box((0, P), (1, count))
        b.load(places.rows(P, count), every)
    for r0, size in b.tiles(rows, P):
        b.fresh(data)
        b.load(data.rows(size, columns), table.rows(size, columns, r0 * columns))
        for c0, some in b.tiles(count, wide):
            b.fresh(picked)
            where = places.rows(size, some, c0 if shared else 0)
            if not shared:
                b.fresh(places)
                b.load(where, index.rows(size, some, r0 * count + c0))
            to = picked.rows(size, some)
            b.emit("local_gather" if shared else "nc_n_gather", to,
                   data.rows(size, columns), where)  # fmt: skip
            b.store(out.rows(size, some, r0 * count + c0), to)
    return b.build()
