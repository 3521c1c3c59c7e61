"""The largest of every row in order, eight at a time, or by a sorting network where that is faster.

max8 finds the eight largest and nc_match_replace8 takes them out and says where they were. Many of
bfloat16 are found by GpSimd's topk first (`kernels/largest_of_groups.py`). Rows
longer than a tile give their largest chunk by chunk, which are then worked on as one row. What is
compared is half the number, so that infinity is finite and more than what was taken out; NaN is
found as the engines order it, which is not public.
"""

from collections.abc import Iterator, Mapping
from math import ceil, inf, prod
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Engine, Program, Role, rows_of
from ..kernels.eights_of_rows import eights_of_rows
from ..kernels.largest_of_groups import group_cycles, largest_of_groups
from ..kernels.limits import WIDE, P, evenly
from ..kernels.sort_keys import INFINITE, PADDING, SEARCHED
from ..kernels.sort_network import network_cycles, sort_rows
from .op import Lowered
from .row_by_row import along_last

__all__ = [
    "along_dimension",
    "few",
    "flat_sort",
    "found_in",
    "ordered",
    "select_largest",
    "sort",
    "topk",
]

FEW, LEAST = 64, 256  # rows that are cut over partitions, and columns of a piece (chosen)
MOST = 4096  # candidates of all chunks together (chosen)


def few(rows: int, cores: int) -> bool:
    """Whether rows are so few that each is cut over several partitions."""
    return ceil(rows / cores) <= FEW


def _eights(k: int) -> int:
    return 8 * ceil(k / 8)


def _by_eights(rows: int, columns: int, k: int) -> bool:
    """Whether the candidates of a row's chunks or pieces fit."""
    wide = _segment(rows, columns, k)
    return max(ceil(columns / wide), ceil(wide / WIDE)) * _eights(k) <= MOST


def select_largest(
    rows: int, columns: int, k: int, *, sign: float, chip: Chip, dtype: str, cores: int = 1,
    first: int = 0,
) -> Program:  # fmt: skip
    """values[r, :], index[r, :] = the k largest of in[r, :] * sign, times sign, and where, without
    the `first` largest.
    """
    if not few(rows, cores) and columns <= WIDE:
        return eights_of_rows(rows, columns, range(first, k), sign=sign, dtype=dtype, cores=cores)
    rows = ceil(rows / cores)
    b = Builder(f"top {k} of {rows}x{columns}", cores=cores)
    wide = _segment(rows, columns, k)
    if wide < columns and rows <= FEW:
        return _LargestOfFew(b, rows, columns, range(first, k), sign, dtype, wide).build()
    return _Largest(b, rows, columns, range(first, k), sign, dtype, wide).build()


def _segment(rows: int, columns: int, k: int) -> int:
    """Columns that a partition works on: few rows are cut so that all partitions have some, or half
    of them if pieces are then as long: those of all rows are one transfer.
    """
    if rows > FEW:
        return evenly(columns, WIDE)
    most = min(P // rows, columns // max(LEAST, 4 * _eights(k)))
    pieces = next((n for n in range(most, most // 2, -1) if columns % n == 0), most)
    return ceil(columns / pieces) if pieces > 1 else evenly(columns, WIDE)


class _Largest:
    def __init__(
        self, b: Builder, rows: int, columns: int, stored: range, sign: float, dtype: str, wide: int
    ) -> None:
        """A partition has `wide` columns of a row at once."""
        self.b, self.rows, self.columns, self.sign = b, rows, columns, sign
        self.first, self.k = stored.start, len(stored)
        self.source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
        self.values = b.hbm("values", (rows, self.k), dtype, Role.OUTPUT)
        self.index = b.hbm("index", (rows, self.k), "int32", Role.OUTPUT)
        self.each, self.wide = _eights(stored.stop), wide
        self.chunks = ceil(columns / self.wide)
        self.tile = evenly(wide, WIDE)  # columns that it works on
        self.held = max(self.tile, self.each)
        self.raw = b.sbuf("raw", self.tile, dtype, slots=2)
        shortest = min(self.tile, wide % self.tile or wide, columns % wide or wide)
        self.plain = self.each == 8 <= shortest and sign == 1 and dtype in SEARCHED
        self.data = self.raw if self.plain else b.sbuf("data", self.held, "float32", slots=2)
        total = self.chunks * self.each
        slots = 2 if self.chunks == 1 else 1
        self.found = b.sbuf("found", total, "float32", slots=slots)
        self.places = b.sbuf("places", total, "int32", slots=slots)
        if self.chunks > 1:
            self.merged = b.sbuf("merged", self.each, "float32", slots=2)
            self.of, self.picked = (
                b.sbuf(n, self.each, "int32", slots=2) for n in ("of", "picked")
            )
            self.column = b.sbuf("first column", 1, "float32", slots=2)
        self.stored = b.sbuf("stored", self.k, dtype, slots=2)

    def build(self) -> Program:
        b = self.b
        for r0, size in b.tiles(self.rows, P):
            b.fresh(self.found, self.places, self.stored)
            if self.chunks > 1:
                b.fresh(self.column)
                b.emit("memset", rows_of(self.column, size, 1), value=0.0)
            for number, c0, count in b.parts(self.columns, self.wide):
                self._chunk(r0, number, c0, size, count)
            self._store(r0, size)
        return b.build()

    def _store(self, r0: Affine, size: int) -> None:
        b, at = self.b, r0 * self.k
        best, places = self._merge(size) if self.chunks > 1 else (self.found, self.places)
        to, found = rows_of(self.stored, size, self.k), rows_of(best, size, self.k, self.first)
        b.emit(
            "tensor_scalar", to, found, op0="multiply", imm0=1.0 if self.plain else 2 * self.sign
        )
        b.store(rows_of(self.values, size, self.k, at), to)
        b.store(rows_of(self.index, size, self.k, at), rows_of(places, size, self.k, self.first))

    def _chunk(self, r0: Affine, number: Affine, c0: Affine, size: int, count: int) -> None:
        """The largest of a chunk, counted in columns of the row."""
        b, held = self.b, max(count, self.each)
        b.fresh(*{self.raw, self.data})
        raw = rows_of(self.raw, size, count)
        b.load(raw, rows_of(self.source, size, count, r0 * self.columns + c0))
        if held > count:
            b.emit("memset", rows_of(self.data, size, held), value=-PADDING)
        self._key(rows_of(self.data, size, count), raw)
        start = number * self.each
        self._rounds(self.data, held, size, self.found, self.places, start)
        if self.chunks > 1:
            found, column = (
                rows_of(self.places, size, self.each, start),
                rows_of(self.column, size, 1),
            )
            b.emit("tensor_scalar", found, found, column, op0="add")
            b.emit("tensor_scalar", column, column, op0="add", imm0=float(self.wide))

    def _key(self, to: Access, source: Access) -> None:
        if self.plain:  # nothing is taken out, filled up or turned
            return
        self.b.emit("tensor_scalar", to, source, engine=Engine.SCALAR, op0="multiply",
                    imm0=self.sign / 2, op1="max", imm1=-INFINITE)  # fmt: skip

    def _rounds(
        self, data: Buffer, count: int, size: int, found: Buffer, places: Buffer, start: Affine
    ) -> None:
        """The largest eight, taken out, until there are enough.

        Of a single eight, equal elements are found in the order in which they are.
        """
        b, whole = self.b, rows_of(data, size, count)
        if self.each == 8:
            eight, where = rows_of(found, size, 8, start), rows_of(places, size, 8, start)
            b.emit("max8", eight, whole)
            b.emit("nc_find_index8", where, whole, eight)
            return
        with b.loop(self.each // 8) as turn:
            eight = rows_of(found, size, 8, start + turn * 8)
            b.emit("max8", eight, whole)
            where = rows_of(places, size, 8, start + turn * 8)
            b.emit("nc_match_replace8", (whole, where), whole, eight, imm=-PADDING)

    def _merge(self, size: int) -> tuple[Buffer, Buffer]:
        """The largest of what the chunks gave, and the columns that those came from."""
        found = self.merged, self.of, self.picked
        return self._largest_of(self.found, self.places, self.chunks * self.each, size, found)

    def _largest_of(
        self, values: Buffer, places: Buffer, total: int, size: int,
        made: tuple[Buffer, Buffer, Buffer],
    ) -> tuple[Buffer, Buffer]:  # fmt: skip
        b, (merged, of, picked) = self.b, made
        b.fresh(merged, of, picked)
        self._rounds(values, total, size, merged, of, Affine())
        columns, there = rows_of(places, size, total), rows_of(of, size, self.each)
        b.emit("nc_n_gather", rows_of(picked, size, self.each), columns, there)
        return merged, picked


class _LargestOfFew(_Largest):
    """Few rows: each is cut over several partitions, whose largest come together in one.

    Partitions have a row's pieces one after the other; or all rows' first pieces, then their
    second ones, where pieces differ and are fewer than rows: those of a kind are one transfer.
    """

    def __init__(
        self, b: Builder, rows: int, columns: int, stored: range, sign: float, dtype: str, wide: int
    ) -> None:
        super().__init__(b, rows, columns, stored, sign, dtype, wide)
        self.most = min(rows, P // self.chunks)  # rows at once
        self.by_piece = columns % wide > 0 and self.chunks < self.most
        self.tiles = list(range(0, wide, self.tile))  # where those of a piece begin
        total = len(self.tiles) * self.each
        self.of_tiles = b.sbuf("of tiles", total, "float32", slots=2)
        self.places_there = b.sbuf("places there", total, "int32", slots=2)
        if len(self.tiles) > 1:
            self.made = (
                b.sbuf("of parts", self.each, "float32", slots=2),
                b.sbuf("of which tile", self.each, "int32", slots=2),
                b.sbuf("places in parts", self.each, "int32", slots=2),
            )
        self.start = b.sbuf("start", 1, "float32")

    def build(self) -> Program:
        b = self.b
        self._starts()
        for r0, size in b.tiles(self.rows, self.most):
            b.fresh(self.found, self.places, self.stored, self.of_tiles, self.places_there)
            parts = (self.most if self.by_piece else size) * self.chunks
            for k, c0 in enumerate(self.tiles):
                self._tile((r0, size), parts, k * self.each, c0)
            found = self.of_tiles, self.places_there
            if len(self.tiles) > 1:
                found = self._largest_of(*found, len(self.tiles) * self.each, parts, self.made)
            self._join(size, parts, *found)
            self._store(r0, size)
        return b.build()

    def _tile(self, rows: tuple[Affine, int], parts: int, at: int, c0: int) -> None:
        """The largest of the columns of each piece from c0 on, counted in columns of the piece."""
        b, count = self.b, min(self.tile, self.wide - c0)
        left = max(0, min(count, self.columns % self.wide - c0))  # of the last piece
        b.fresh(*{self.raw, self.data})
        raw, data = (rows_of(t, parts, count) for t in (self.raw, self.data))
        if self.columns % self.wide == 0:
            left = count
        elif left < count or rows[1] < self.most:
            b.emit("memset", raw, value=-inf * self.sign)  # as small as all can be
        for there, here in self._transfers(*rows, c0, count, left):
            b.load(here, there)
        held = max(count, self.each)
        if held > count:
            b.emit("memset", rows_of(self.data, parts, held), value=-PADDING)
        self._key(data, raw)
        self._rounds(self.data, held, parts, self.of_tiles, self.places_there, Affine(at))
        if c0:
            found = rows_of(self.places_there, parts, self.each, at)
            b.emit("tensor_scalar", found, found, op0="add", imm0=float(c0))

    def _transfers(
        self, r0: Affine, size: int, c0: int, count: int, left: int
    ) -> Iterator[tuple[Access, Access]]:
        """Columns of the pieces of rows, of which the last have `left`.

        Of equal numbers the first are found, which are in the pieces before.
        """
        b, (full, rest), tile = self.b, divmod(self.columns, self.wide), self.tile
        first, columns = r0 * self.columns + c0, self.columns

        def there(at: Affine, pitch: int, lines: int, wide: int) -> Access:
            return Access(buffer=self.source, offset=at, pattern=((pitch, lines), (1, wide)))

        if not rest:
            yield there(first, self.wide, size * full, count), rows_of(self.raw, size * full, count)
        elif self.by_piece:
            with b.loop(full) as j:
                here = rows_of(self.raw, size, count, j * (self.most * tile))
                yield there(first + j * self.wide, columns, size, count), here
            if left:
                here = rows_of(self.raw, size, left, full * self.most * tile)
                yield there(first + full * self.wide, columns, size, left), here
        else:
            with b.loop(size) as r:
                at, part = first + r * columns, r * (self.chunks * tile)
                yield there(at, self.wide, full, count), rows_of(self.raw, full, count, part)
                if left:
                    here = rows_of(self.raw, 1, left, part + full * tile)
                    yield there(at + full * self.wide, 1, 1, left), here

    def _join(self, size: int, parts: int, values: Buffer, columns: Buffer) -> None:
        """The candidates of a row's pieces beside each other, counted in columns of the row."""
        b, pieces, each = self.b, self.chunks, self.each
        there = rows_of(columns, parts, each)
        b.emit("tensor_scalar", there, there, rows_of(self.start, parts, 1), op0="add")
        for part, whole in ((values, self.found), (columns, self.places)):
            if not self.by_piece:
                to, source = rows_of(whole, size, pieces * each), rows_of(part, parts, each)
                b.emit("dma_copy", to, source, queue="join")
                continue
            with b.loop(pieces) as j:
                source = rows_of(part, size, each, j * (self.most * part.row_elements))
                b.emit("dma_copy", rows_of(whole, size, each, j * each), source, queue="join")

    def _starts(self) -> None:
        """The column where each partition's piece starts: made in a partition, then spread."""
        b, pieces = self.b, self.chunks
        line = b.sbuf("first columns", pieces, "float32")
        b.emit("iota", rows_of(line, 1, pieces), channel=0, step=self.wide, base=0)
        kinds = ((1, pieces), (0, self.most)) if self.by_piece else ((0, self.most), (1, pieces))
        of_all = Access(buffer=line, pattern=((pieces, 1), *kinds))
        b.emit("dma_copy", rows_of(self.start, self.most * pieces, 1), of_all, queue="join")


# --- from calls ---


def ordered(
    rows: int, columns: int, k: int, largest: bool, dtype: str, target: Target, first: int = 0
) -> Program:
    """By eights, by groups of GpSimd or by a network, whichever works fewer cycles."""
    options: dict[str, Any] = {
        "chip": target.chip, "cores": target.cores, "dtype": dtype, "first": first,
    }  # fmt: skip
    share = ceil(rows / target.cores)
    wide = _segment(share, columns, k)
    pieces = ceil(columns / wide) if share <= FEW else 1
    passed = ceil(share / max(1, P // pieces)) * (
        wide + pieces * _eights(k) if pieces > 1 else columns
    )
    fits, sign = _by_eights(share, columns, k), 1.0 if largest else -1.0
    eights = 2 * passed * ceil(k / 8) if fits else inf
    groups = group_cycles(share, columns, k) if dtype == "bfloat16" else inf
    if groups < min(eights, network_cycles(share, columns)):
        return largest_of_groups(rows, columns, k, sign=sign, **options)
    if eights <= network_cycles(share, columns):
        return select_largest(rows, columns, k, sign=sign, **options)
    return sort_rows(rows, columns, k, descending=largest, **options)


def along_dimension(x: TensorArg, dim: int, outs: Mapping[str, TensorArg], target: Target, k: int,
           largest: bool, first: int = 0) -> Lowered:  # fmt: skip
    """Along a dimension; one that is not the last is turned to be it, and the results back.

    outs  results by the name of the buffer: values, index
    """
    shape = x.shape or (1,)
    dim %= len(shape)
    rows, columns = prod(shape) // shape[dim], shape[dim]
    program = ordered(rows, columns, k, largest, x.dtype, target, first)
    if prod(shape[dim + 1 :]) == 1:
        return (labelled(program, {"in": x, **outs}),)
    return along_last(x, dim, outs, program, target)


def found_in(call: Call, *names: str) -> dict[str, TensorArg]:
    """The results of a call by the names of buffers."""
    return dict(zip(names or ("values", "index"), call.outputs, strict=False))


def topk(call: Call, target: Target) -> Lowered:
    x, k, dim = call.tensors[0], int(call.argument(1, 1)), int(call.argument(2, -1))
    if not x.numel or not k:
        return ()
    largest = call.argument(3, True) is not False
    return along_dimension(x, dim, found_in(call), target, k, largest)


def sort(call: Call, target: Target) -> Lowered:
    """Sort, argsort, msort; the order of equal elements is not kept."""
    x = call.tensors[0]
    if not x.numel:
        return ()
    stable = "stable" in call.op.partition(".")[2]
    rest = call.arguments[2 if stable else 1 :]
    dim = next((a for a in rest if isinstance(a, int) and not isinstance(a, bool)), None)
    descending = any(a is True for a in rest)
    dim = (0 if call.name == "msort" else -1) if dim is None else dim
    columns = x.shape[dim] if x.shape else 1
    outs = found_in(call, "index") if call.name == "argsort" else found_in(call)
    return along_dimension(x, dim, outs, target, columns, descending)


def flat_sort(call: Call, target: Target) -> Lowered:
    """All elements of a tensor."""
    x = (call.tensors or call.outputs)[0]
    if not x.numel:
        return ()
    program = ordered(1, x.numel, x.numel, False, x.dtype, target)
    return (labelled(program, {"in": x}),)
