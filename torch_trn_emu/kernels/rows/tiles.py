"""Where the values of a program over rows lie: in tiles, in memory, and line by line in both."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil

from ...chip import Chip
from ...engines.arithmetic import ACTIVATIONS
from ...isa import Access, Affine, Buffer, Builder, Role, itemsize
from ..limits import WIDE, P, evenly
from .joined import block_of
from .layout import Layout, spread
from .order import Order
from .values import NEUTRAL, Kind, RowStep, Values

__all__ = ["RowTiles", "columns_of"]

# Of a partition, for tiles of one column and sums on their way from PSUM (chosen).
SMALL_BYTES = 8192
SWAPPING = 8  # tiles that go together where activation tables are swapped (chosen)
TURN = 4096  # columns of a row that are worked on in turn (chosen: 16 KiB of float32)
RUNS = 2048  # elements of a row, in runs, that are loaded together (chosen: DMA's full rate)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Buffers in which pieces of rows become rows.

    own     what the chunks of a piece give
    turned  what all pieces give, on one partition for each value of a line
    joined  what the rows give, there
    back    the same on each partition of a row
    ones    [128, 128], where all partitions are added up
    there   of the columns at the end that some pieces lack: 1 where an element is, else 0
    end     the sums of those columns
    """

    own: Buffer
    turned: Buffer
    joined: Buffer
    back: Buffer
    ones: Buffer | None
    there: Buffer
    end: Buffer


class RowTiles(Order):
    """Buffers of a program whose rows lie as `layout` says, and the accesses of them.

    parts   tiles of 128 lines that go together
    width   elements of a line that a tile has: all of them, or those of a chunk
    places  steps whose result overwrites the tile of another value
    apart   columns are worked on in turn where a tile does not have them all
    """

    def __init__(
        self, b: Builder, layout: Layout, values: Values, chip: Chip, *, apart: bool = False
    ) -> None:
        steps = list(spread(values.steps, values.kinds)) if layout.values > 1 else values.steps
        super().__init__(values, steps)
        self.b, self.layout, self.apart = b, layout, apart
        self.rows, self.columns = layout.lines, layout.width
        self.places = self.shared()
        self.parts, self.width = self._fitting(chip)
        if layout.missing and self.width < self.columns:
            self.width = self._with_an_end(self.width)
        self.chunks = ceil(self.columns / self.width)
        self.in_turn = apart and self.chunks > 1
        self.hbm = {
            i.name: b.hbm(i.name, self._shape(i.kind), i.dtype, _role(i.kind))
            for i in self.inputs.values()
        }
        self.stored = {
            name: b.hbm(o.stored or f"out {name}", self._shape(self.steps[name].kind), o.dtype,
                        Role.OUTPUT)
            for name, o in self.outputs.items()
        }  # fmt: skip
        self.tiles = {i.name: self._tile(i.name, i.kind, i.dtype, 2) for i in self.inputs.values()}
        for name, s in self.steps.items():
            if name not in self.places:
                dtype = self.outputs[name].dtype if name in self.outputs else s.dtype or "float32"
                self.tiles[name] = self._tile(name, s.kind, dtype, 1 + (name in self.outputs))
        self.tiles |= {name: self.tiles[place] for name, place in self.places.items()}
        several = self.chunks > 1 or layout.pieces > 1
        self.partial = {
            name: b.sbuf(f"{name} of chunks", max(self.chunks, layout.values), "float32", slots=2,
                         parts=self.parts)
            for name, s in self.steps.items()
            if s.reduces and several
        }  # fmt: skip
        if layout.pieces > 1:
            self.whole = self._of_pieces()

    def _shape(self, kind: Kind) -> tuple[int, int]:
        """In memory."""
        layout = self.layout
        full, column = (layout.rows, layout.columns * layout.inner), (layout.rows, layout.inner)
        row, one = (1, layout.columns), (1, 1)
        return {Kind.FULL: full, Kind.COLUMN: column, Kind.ROW: row, Kind.ONE: one}[kind]

    def _tile(self, name: str, kind: Kind, dtype: str, slots: int) -> Buffer:
        if kind is Kind.COLUMN:
            return self.b.sbuf(f"{name} tile", self.layout.values, dtype, slots=2, parts=self.parts)
        if kind is Kind.ONE:  # on all partitions, for the whole program
            return self.b.sbuf(f"{name} tile", 1, dtype)
        if kind is Kind.ROW:  # stays for the whole program
            held = "float32" if name in self.steps else dtype
            if self.in_turn:
                return self.b.sbuf(f"{name} tile", self.width, held, slots=2)
            return self.b.sbuf(f"{name} tile", self.width, held, parts=self.chunks)
        return self.b.sbuf(f"{name} tile", self.width, dtype, slots=slots, parts=self.parts)

    def _fitting(self, chip: Chip) -> tuple[int, int]:
        """Tiles of rows that go together, and columns of each.

        Two tiles hide the engines' latencies, and more of them share the loads of activation
        tables, if there are several; one is better than to load the rows again in chunks, and so is
        one, of several, whose steps overwrite what was loaded.
        """
        tiles = ceil(self.rows / P)
        most = min(tiles, 2)
        if tiles > 2 and len(_tables_of(self.steps.values())) > 1:
            parts = min(tiles, SWAPPING)
            if self._width(chip, parts) == self.columns:
                return parts, self.columns
        for parts in range(most, 0, -1):
            if self._width(chip, parts) == self.columns:
                return parts, self.columns
        if most > 1:
            self.places = self.shared(inputs=True)
            if self._width(chip, 1) == self.columns:
                return 1, self.columns
        self.places = {}  # each chunk computes what it needs again, in another order
        return most, self._width(chip, most)

    def _width(self, chip: Chip, parts: int) -> int:
        """Columns that all tiles of a chunk leave room for; ROW values keep all columns."""
        usable = chip.sbuf.usable_bytes_per_partition - SMALL_BYTES
        whole = block_of(list(self.steps.values()))
        if self.layout.values > 1:
            usable -= 8 * parts * self.layout.values * len(list(self.of(Kind.COLUMN)))
        kept = sum(
            4 if n in self.steps else itemsize(self.inputs[n].dtype) for n in self.of(Kind.ROW)
        )
        each = parts * sum(map(self._bytes, self.of(Kind.FULL)))
        if self.layout.run:  # tiles that move while others are worked on
            most = max(self.layout.run, min(RUNS, int(usable // each)))
            if most * each > usable:
                raise KeyError(f"runs of {most} elements, more than SBUF holds of all values")
            return evenly(self.columns, most, self.layout.run)
        if self.apart:
            return evenly(self.columns, min(TURN, int(usable // (each + 2 * kept))), whole)
        longer = self.columns > WIDE and self.layout.values == 1
        if longer and self.reads_once:  # chunks, which move while others are worked on
            return evenly(self.columns, WIDE, whole)
        if (each + kept) * self.columns <= usable:
            return self.columns
        room = (usable - kept * self.columns) / max(each + kept, 1)  # the last chunk is kept whole
        return evenly(self.columns, int(max(room, 256)), whole)

    def _with_an_end(self, most: int) -> int:
        """Columns of a chunk, which leave a last one that holds little but what a piece lacks."""
        columns = self.columns - self.layout.missing - 1
        return columns // ceil(columns / most) or most

    def lacking(self, count: int) -> int:
        """Elements that the last piece lacks of a chunk of `count` columns."""
        return self.layout.missing if self.chunks == 1 or count < self.width else 0

    @property
    def can_be_cut(self) -> bool:
        """Whether lines can be in several chunks."""
        whole = not any(i.kind is Kind.ROW for i in self.inputs.values())
        ends = whole and self.columns % self.width > self.layout.missing
        return self.layout.values == 1 and (ends or not self.layout.missing)

    def _bytes(self, name: str) -> float:
        """What one column of a FULL value's tile takes, its slots included."""
        if name in self.places:
            return 0
        if name in self.inputs:
            return 2 * itemsize(self.inputs[name].dtype)
        return 2 * itemsize(self.outputs[name].dtype) if name in self.outputs else 4

    @property
    def hides_latency(self) -> bool:
        """Whether two tiles of rows are on chip, or one is all there is."""
        return self.rows <= P or self.parts > 1

    def _of_pieces(self) -> "_Pieces":
        """What the reductions of pieces share."""
        b, layout = self.b, self.layout
        sums = any(s.reduces and s.attributes == {"op": "add"} for s in self.steps.values())
        return _Pieces(
            own=b.sbuf("own piece", 1, "float32", slots=2),
            turned=b.psum("turned pieces", P, "float32", slots=2),
            joined=b.sbuf("joined pieces", layout.rows, "float32", slots=2),
            back=b.psum("joined of each", layout.values, "float32", slots=2),
            ones=b.sbuf("ones of pieces", P, "float32") if sums and layout.rows == 1 else None,
            there=b.sbuf("there", max(1, layout.missing), "float32"),
            end=b.sbuf("sum of the end", 1, "float32", slots=2),
        )

    def constants_of_pieces(self) -> None:
        """Ones, what the last piece of a row has, and what changes no reduction."""
        b, layout, whole = self.b, self.layout, self.whole
        if whole.ones:
            b.emit("memset", whole.ones.rows(P, P), value=1.0)
        if not layout.missing:
            return
        missing, last = layout.missing, layout.pieces - 1
        b.emit("memset", whole.there.rows(P, missing), value=1.0)
        if layout.rows == 1:
            kept = whole.there.rows(P, missing)
            b.emit("affine_select", kept, kept, channel=-1, step=0, base=last - 1, on_false=0.0)
        else:
            none = b.sbuf("none", missing, "float32")
            b.emit("memset", none.rows(layout.rows, missing), value=0.0)
            lines = (layout.pieces * missing, layout.rows)
            at = whole.there.box(lines, (1, missing), at=last * missing)
            b.emit("dma_copy", at, none.rows(layout.rows, missing), queue="pieces")
        ops = {str(s.attributes["op"]) for s in self.steps.values() if s.reduces}
        self.neutral = {op: b.sbuf(f"neutral of {op}", 1, "float32") for op in sorted(ops)}
        for op, tile in self.neutral.items():
            b.emit("memset", tile.rows(P, 1), value=NEUTRAL[op])

    # --- where values lie ---

    def moved(
        self, tile: Buffer, hbm: Buffer, r0: Affine, h: int, size: int, c0: Affine, count: int
    ) -> Iterator[tuple[Access, Access]]:
        """(columns of a tile of lines, what they are in memory)"""
        if self.layout.missing:
            yield from self._uneven(tile, hbm, self.layout.columns, c0, count)
            return
        row, run = r0 + h * P, self.layout.run
        if run:
            lines = self.layout.rows
            at, runs = row * run + c0 * lines, (lines * run, count // run)
            there = hbm.box((run, size), runs, (1, run), at=at)
        else:
            at = row * self.columns + c0
            there = hbm.box((self.columns, size), (1, count), at=at)
        yield tile.rows(size, count, part=h), there

    def _uneven(
        self, tile: Buffer, hbm: Buffer, pitch: int, c0: Affine, count: int
    ) -> Iterator[tuple[Access, Access]]:
        """Rows whose last piece is shorter: the others first. `pitch` is a row's in memory."""
        layout, line = self.layout, tile.row_elements
        last, each, lacking = layout.pieces - 1, layout.reduced, self.lacking(count)
        parts = ((0, last, count), (last, 1, count - lacking))
        for first, pieces, some in parts if lacking else ((0, last + 1, count),):
            rows = (line * layout.pieces, layout.rows), (pitch, layout.rows)
            here = tile.lanes(pieces, rows[0], (1, some), at=first * line)
            at = c0 + first * each
            yield here, hbm.box((each, pieces), rows[1], (1, some), at=at)

    def values(self, tile: Buffer, h: int, size: int) -> Access:
        """A COLUMN of a tile of lines."""
        return tile.rows(size, self.layout.values, part=h)

    def by_row(self, tile: Buffer, h: int, size: int, count: int) -> Access:
        """A FULL tile with what is reduced innermost."""
        layout = self.layout
        if layout.values == 1:
            return tile.rows(size, count, part=h)
        block = layout.reduced * layout.inner
        blocks = ((block, layout.together), (1, layout.inner), (layout.inner, layout.reduced))
        return tile.lanes(size, *blocks, part=h)

    def repeated(self, tile: Buffer, h: int, size: int, count: int) -> Access:
        """A COLUMN for every element of a FULL tile."""
        layout = self.layout
        inner = [(layout.inner, layout.together), (0, layout.reduced), (1, layout.inner)]
        if layout.values == 1:  # which may be cut in chunks
            inner = [(0, count)]
        return tile.lanes(size, *inner, part=h)

    def row(
        self, name: str, part: Affine, c0: Affine, count: int
    ) -> Iterator[tuple[Access, Access]]:
        """(where a ROW lies on every partition, once for all its rows; what it is in memory)"""
        layout = self.layout
        if layout.missing:
            yield from self._uneven(self.tiles[name], self.hbm[name], 0, c0, count)
            return
        lines, each = self.rows if layout.pieces > 1 else P, count // layout.together
        repeats = ((0, lines // layout.pieces), (self.columns, layout.pieces))
        source = self.hbm[name].box(*repeats, (1, each), at=c0)
        yield self.tiles[name].rows(lines, each, part=part), source

    def one(self, name: str) -> tuple[Access, Access]:
        """(a ONE on every partition, what it is in memory)"""
        return self.tiles[name].rows(P, 1), self.hbm[name].box((0, P), (1, 1))

    def column(
        self, tile: Buffer, hbm: Buffer, r0: Affine, h: int, size: int, *, once: bool = False
    ) -> tuple[Access, Access]:
        """(a COLUMN of a tile of lines, what it is in memory); `once` for each row of pieces"""
        layout = self.layout
        if layout.pieces == 1:
            at, line = (r0 + h * P) * layout.values, (layout.values, size)
            return self.values(tile, h, size), hbm.box(line, (1, line[0]), at=at)
        if once:
            rows = (layout.pieces * layout.values, layout.rows)
            first = tile.box(rows, (1, layout.values))
            return first, hbm.rows(layout.rows, layout.values)
        every = ((layout.values, layout.rows), (0, layout.pieces), (1, layout.values))
        return self.values(tile, h, size), hbm.box(*every)


def _tables_of(steps: Iterable[RowStep]) -> set[str]:
    """The activation tables that steps need."""
    ops = {str(s.attributes["op"]) for s in steps if s.opcode == "activation"}
    return {ACTIVATIONS[op].table for op in ops} - {""}


def columns_of(a: Access, first: int, count: int) -> Access:
    """Some columns of a tile; all of what has one value a row."""
    line, *free = a.pattern
    if a.free == 1:
        return a
    ((stride, _),) = free
    return replace(a, offset=a.offset + first * stride, pattern=(line, (stride, count)))


def _role(kind: Kind) -> Role:
    return Role.WEIGHT if kind is Kind.ROW else Role.INPUT
