"""Programs over the rows of a matrix: rows on partitions, columns along the free dimension.

A program is a list of steps (`rows/values.py`). `rows/layout.py` says which rows share a
partition or have several. Rows too long for SBUF are cut in chunks: what comes before a reduction
is then computed once for the reduction and again after it, from what is loaded again.
"""

from collections.abc import Iterator
from math import ceil

from ...chip import Chip
from ...isa import Access, Affine, Builder, Program
from ..limits import BANK, P
from .joined import block_of, emit_joined
from .layout import Layout, layout_of
from .tiles import RowTiles, columns_of
from .values import JOINED, MOST_SUMMED, SUMMING, Kind, RowStep, Values

__all__ = ["flat_program", "planes_program", "row_program"]

FLAT_COLUMNS = (2048, 1024)  # chosen: 8 KiB of float32, enough for DMA's full rate, or half of it


def row_program(
    name: str,
    rows: int,
    columns: int,
    values: Values,
    *,
    chip: Chip,
    cores: int = 1,
    inner: int = 1,
    apart: bool = False,
) -> Program:
    """The steps over [rows, columns, inner], reduced over columns; one core's share of the rows.

    Intermediate values are float32. A FULL or COLUMN output is stored tile by tile; a ROW output
    is added up over the core's rows.

    apart  nothing is reduced, and columns of long rows are worked on in turn, for all rows each
    """
    share = ceil(rows / cores)
    plain = Layout(rows=share, columns=columns, inner=inner)
    best, even = (layout_of(share, columns, inner, values, even=e) for e in (False, True))
    for layout in (best, even, plain):
        program = _RowProgram(Builder(name, cores=cores), layout, values, chip, apart=apart)
        if program.chunks == 1 or program.can_be_cut:
            return program.build()
    raise KeyError(f"{columns} x {inner} elements of a row, which SBUF does not hold at once")


def planes_program(
    name: str, planes: int, images: int, pixels: int, values: Values, *, chip: Chip, cores: int = 1
) -> Program:
    """The steps over a core's [images, planes, pixels]: a COLUMN is of planes, none is reduced."""
    layout = Layout(rows=planes, columns=images * pixels, run=pixels)
    return _RowProgram(Builder(name, cores=cores), layout, values, chip).build()


def flat_program(
    name: str, elements: int, values: Values, *, chip: Chip, cores: int = 1
) -> Program:
    """The steps over `elements` that no step joins to rows: rows as long as suits the chip.

    Shorter rows are worth it where only they let two tiles of rows work at once.
    """
    tried, whole = [], block_of(values.steps)
    for most in FLAT_COLUMNS:
        columns = max(1, min(most, ceil(elements / (P * cores))))
        columns = ceil(columns / whole) * whole
        rows = ceil(elements / columns)
        b = Builder(name, cores=cores if rows >= cores else 1)
        layout = Layout(rows=ceil(rows / b.cores), columns=columns)
        tried.append(_RowProgram(b, layout, values, chip))
        if tried[-1].hides_latency:
            return tried[-1].build()
    return tried[0].build()


class _RowProgram(RowTiles):
    now: tuple[tuple[Affine, Affine, int], ...] = ()  # (part, first, count) of columns in turn

    def build(self) -> Program:
        self._constants()
        self._rest()
        for now in self._in_turn() if self.in_turn else [()]:
            self.now = now
            for r0, some in self.b.tiles(self.rows, P * self.parts):
                halves = [(h, min(P, some - h * P)) for h in range(ceil(some / P))]
                self._rows(r0, halves)
        self._finish_sums()
        return self.b.build()

    def _in_turn(self) -> Iterator[tuple[tuple[Affine, Affine, int], ...]]:
        """Columns that are worked on for all rows, with what these share."""
        for _, c0, count in self.b.parts(self.columns, self.width):
            for name in self.of(Kind.ROW):
                self.b.fresh(self.tiles[name])
                self._load_row(name, Affine(), c0, count)
            yield ((Affine(), c0, count),)

    def _rest(self) -> None:
        """Rows that make no line: one on each partition, in the tiles of the lines, and first, so
        that their latency is not the program's.
        """
        lines = self.layout
        if not lines.rest:
            return
        self._take(Layout(rows=lines.rows, columns=lines.columns, inner=lines.inner))
        for r0, some in self.b.tiles(lines.rest, P):
            self._rows(r0 + (lines.rows - lines.rest), [(0, some)])
        self._take(lines)

    def _take(self, layout: Layout) -> None:
        self.layout, self.rows = layout, layout.lines
        self.columns = self.width = layout.width  # lines of several rows are not cut in chunks

    def _constants(self) -> None:
        for name in self.of(Kind.ONE):
            self.b.load(*self.one(name))
        if self.layout.pieces > 1:
            self.constants_of_pieces()
        for name in [] if self.in_turn else self.of(Kind.ROW):
            for part, c0, count in self.b.parts(self.columns, self.width):
                if name in self.steps:
                    self.b.emit("memset", self.tiles[name].rows(P, count, part=part), value=0.0)
                else:
                    self._load_row(name, part, c0, count)

    def _load_row(self, name: str, part: Affine, c0: Affine, count: int) -> None:
        self._fill(self.tiles[name].rows(P, count, part=part))
        for here, there in self.row(name, part, c0, count):
            self.b.load(here, there)

    def _fill(self, whole: Access) -> None:
        """Numbers where pieces of rows lack elements, before those that are there are loaded."""
        if self.lacking(whole.free):
            self.b.emit("memset", whole, value=0.0)

    def _filled(self, s: RowStep, data: Access) -> Access:
        """A tile to be reduced, once what changes no result is where pieces lack elements."""
        missing = self.layout.missing
        end = columns_of(data, data.free - missing, missing)
        tile = self.neutral[str(s.attributes["op"])]
        neutral = tile.lanes(data.partitions, (0, missing))
        there = self.whole.there.rows(data.partitions, missing)
        self.b.emit("select", end, there, end, neutral)
        return data

    def _rows(self, r0: Affine, halves: list[tuple[int, int]]) -> None:
        b = self.b
        b.fresh(*(self.tiles[n] for n in self.of(Kind.COLUMN)), *self.partial.values())
        for n in self.of(Kind.COLUMN):
            if n in self.inputs:
                for h, size in halves:
                    b.load(*self.column(self.tiles[n], self.hbm[n], r0, h, size))
        last = max((self.phase(n) for n in self.steps), default=0)
        done: set[str] = set()
        self.small: set[tuple[str, int]] = set()  # COLUMN values that are there
        for phase in range(last + 1):
            if self.chunks > 1:
                self._columns(phase, halves)
            ends = [
                s.name
                for s in self.steps.values()
                if (s.reduces and self.phase(s.name) == phase + 1)
                or (
                    self.phase(s.name) == phase
                    and (s.kind is Kind.ROW or (s.kind is Kind.FULL and s.name in self.outputs))
                )
            ]
            if ends:
                self._chunks(r0, halves, ends, done)
        for n in self.outputs:
            if self.steps[n].kind is Kind.COLUMN:
                for h, size in halves:
                    self._column(n, h, size)
                    here, to = self.column(self.tiles[n], self.stored[n], r0, h, size, once=True)
                    b.store(to, here)

    def _columns(self, phase: int, halves: list[tuple[int, int]]) -> None:
        """COLUMN steps whose operands are complete now."""
        for s in self.steps.values():
            if s.kind is Kind.COLUMN and not s.reduces and self.phase(s.name) == phase:
                for h, size in halves:
                    self._column(s.name, h, size)

    def _column(self, name: str, h: int, size: int) -> None:
        """A COLUMN step and those it reads, if they were not made yet.

        Late, before what reads them: an engine that takes its instructions in order would wait for
        the second tile's sum where the first one's has work for it.
        """
        s = self.steps.get(name)
        if s is None or s.kind is not Kind.COLUMN or s.reduces or (name, h) in self.small:
            return
        self.small.add((name, h))
        for read in s.reads:
            self._column(read, h, size)
        reads = [self.values(self.tiles[r], h, size) for r in s.reads]
        to = self.values(self.tiles[name], h, size)
        self.b.emit(s.opcode, to, *reads, engine=s.engine, **s.attributes)

    def _follow(self, reduction: str, h: int, size: int) -> None:
        """What the engine that reduced a row can make of that at once: it need not wait."""
        for s in self.steps.values():
            if s.kind is Kind.COLUMN and s.reads == (reduction,) and s.opcode == "tensor_scalar":
                self._column(s.name, h, size)

    def _chunks(
        self, r0: Affine, halves: list[tuple[int, int]], ends: list[str], done: set[str]
    ) -> None:
        reductions = [s for n in ends if (s := self.steps[n]).reduces]
        for part, c0, count in self.now or self.b.parts(self.columns, self.width):
            summed: set[str] = set()
            for n in self.needed([r for e in ends for r in (e, *self.steps[e].reads)]):
                if n in done:
                    continue
                if self.chunks == 1:
                    done.add(n)
                if n in self.inputs:
                    if self.inputs[n].kind is Kind.FULL:
                        self._load(n, r0, c0, count, halves)
                elif self.steps[n].kind is not Kind.COLUMN:
                    total = self._sum_of(self.steps[n], reductions, count)
                    self._full(self.steps[n], part, count, halves, total)
                    summed.add(total)
            for s in reductions:
                if s.name in summed:
                    continue
                for h, size in halves:
                    data = self.by_row(self.tiles[s.reads[0]], h, size, count)
                    data = self._filled(s, data) if self.lacking(count) else data
                    to = self._reduced(s.name, part, h, size)
                    self.b.emit("tensor_reduce", to, data, **s.attributes)
                    if s.name not in self.partial:
                        self._follow(s.name, h, size)
            for n in ends:
                if n in self.outputs and self.steps[n].kind is Kind.FULL:
                    for h, size in halves:
                        tile, stored = self.tiles[n], self.stored[n]
                        moved = self.moved(tile, stored, r0, h, size, c0, count)
                        for k, (here, to) in enumerate(moved):
                            queue = f"store {stored.name}" + k * " end"
                            self.b.emit("dma_copy", to, here, queue=queue)
        for s in reductions:
            if s.name in self.partial:
                self._finish(s, halves)

    def _finish(self, s: RowStep, halves: list[tuple[int, int]]) -> None:
        """A reduction from its chunks, then from its pieces."""
        for h, size in halves:
            data, to = self.partial[s.name].rows(size, self.chunks, part=h), self.tiles[s.name]
            if self.layout.pieces == 1:
                self.b.emit("tensor_reduce", to.rows(size, 1, part=h), data, **s.attributes)
                continue
            own = self.partial[s.name].rows(size, self.layout.values)
            if self.chunks > 1:
                self.b.fresh(self.whole.own)
                own = self.whole.own.rows(size, 1)
                self.b.emit("tensor_reduce", own, data, **s.attributes)
            self._over_pieces(s, own, self.values(to, h, size))

    def _over_pieces(self, s: RowStep, own: Access, to: Access) -> None:
        """What the partitions of each row have as one value, which all of them get.

        The Tensor engine turns the values of all partitions into one partition and back. A sum over
        all partitions is a product with ones.
        """
        b, layout, whole = self.b, self.layout, self.whole
        size, values = own.partitions, layout.values
        b.fresh(whole.back)
        back = whole.back.rows(size, values)
        if whole.ones and s.attributes == {"op": "add"}:
            b.emit("nc_matmul", back, whole.ones.rows(size, size), own)
        else:
            b.fresh(whole.turned, whole.joined)
            b.emit("nc_transpose", whole.turned.rows(values, size), own)
            rows = ((layout.pieces, layout.rows), (1, layout.pieces))
            parts = whole.turned.lanes(values, *rows)
            b.emit("tensor_reduce", whole.joined.rows(values, layout.rows), parts, **s.attributes)
            every = ((1, layout.rows), (0, layout.pieces))
            b.emit("nc_transpose", back, whole.joined.lanes(values, *every))
        b.emit("tensor_copy", to, back)

    def _sum_of(self, made: RowStep, reductions: list[RowStep], count: int) -> str:
        """The reduction that the instruction which makes a value does as well, or ""."""
        fits = made.kind is Kind.FULL and count <= MOST_SUMMED and self.layout.values == 1
        return next((s.name for s in reductions if fits and s.is_sum_of(made)), "")

    def _reduced(self, name: str, chunk: Affine, h: int, size: int) -> Access:
        """Where a reduction of a chunk goes."""
        if name in self.partial:
            return self.partial[name].rows(size, self.layout.values, chunk, part=h)
        return self.values(self.tiles[name], h, size)

    def _load(
        self, n: str, r0: Affine, c0: Affine, count: int, halves: list[tuple[int, int]]
    ) -> None:
        self.b.fresh(self.tiles[n])
        for h, size in halves:
            self._fill(self.tiles[n].rows(size, count, part=h))
            for here, there in self.moved(self.tiles[n], self.hbm[n], r0, h, size, c0, count):
                self.b.load(here, there)

    def _full(
        self, s: RowStep, chunk: Affine, count: int, halves: list[tuple[int, int]], total: str
    ) -> None:
        """A value of a chunk, and the sum `total` of its rows if that has a name."""
        b = self.b
        if s.kind is Kind.FULL and s.name not in self.places:
            b.fresh(self.tiles[s.name])
        for h, size in halves:
            for r in s.reads:
                self._column(r, h, size)
            reads = [
                self._operand(r, s.opcode, chunk, count, h, size, data=not k)
                for k, r in enumerate(s.reads)
            ]
            if s.kind is Kind.ROW:
                to = self.tiles[s.name].rows(size, count, part=chunk)
                b.emit("tensor_tensor", to, to, *reads, op="add")
                continue
            to = self.tiles[s.name].rows(size, count, part=h)
            if s.opcode == JOINED:
                emit_joined(b, s, to, reads)
            elif total:
                self._summed(s, total, to, self._reduced(total, chunk, h, size), reads)
            else:
                b.emit(s.opcode, to, *reads, engine=s.engine, **s.attributes)

    def _summed(
        self, s: RowStep, total: str, to: Access, result: Access, reads: list[Access]
    ) -> None:
        """A value and its sum; columns that some pieces lack are added by themselves."""
        b, missing = self.b, self.lacking(to.free)
        if not missing:
            b.emit(SUMMING[s.opcode], (to, result), *reads, engine=s.engine, **s.attributes)
            return
        there = to.free - missing
        begin, end = columns_of(to, 0, there), columns_of(to, there, missing)
        given = [columns_of(a, 0, there) for a in reads]
        b.emit(SUMMING[s.opcode], (begin, result), *given, engine=s.engine, **s.attributes)
        given = [columns_of(a, there, missing) for a in reads]
        b.emit(s.opcode, end, *given, engine=s.engine, **s.attributes)
        b.fresh(self.whole.end)
        last = self.whole.end.rows(to.partitions, 1)
        b.emit("tensor_reduce", last, self._filled(self.steps[total], end), op="add")
        b.emit("tensor_tensor", result, result, last, op="add")

    def _operand(
        self, n: str, opcode: str, chunk: Affine, count: int, h: int, size: int, *, data: bool
    ) -> Access:
        """What an instruction reads; `data` is its first operand, which has a value an element."""
        kind = (self.steps.get(n) or self.inputs[n]).kind
        tile = self.tiles[n]
        if kind is Kind.ONE:
            by_partition = opcode in ("tensor_scalar", "activation") and not data
            return tile.lanes(size, (1, 1) if by_partition else (0, count))
        if kind is Kind.ROW and n in self.inputs and self.layout.together > 1:
            block = self.layout.columns
            return tile.lanes(size, (0, count // block), (1, block), part=chunk)
        if kind is Kind.ROW:
            return tile.rows(size, count, part=chunk)
        if kind is Kind.FULL:
            return tile.rows(size, count, part=h)
        if data or opcode in ("tensor_tensor", "select"):  # one value a row, repeated
            return self.repeated(tile, h, size, count)
        return tile.rows(size, 1, part=h)

    def _finish_sums(self) -> None:
        """Partitions added by a product with ones."""
        names = [n for n in self.of(Kind.ROW) if n in self.steps]
        if not names:
            return
        b = self.b
        ones = b.sbuf("ones", 1, "float32")
        total = b.psum("total", BANK, slots=2)
        result = b.sbuf("summed", BANK, "float32", slots=2)
        b.emit("memset", ones.rows(P, 1), value=1.0)
        for n in names:
            for part, c0, count in b.parts(self.columns, self.width):
                for start, size in b.tiles(count // self.layout.together, BANK):
                    b.fresh(total, result)
                    for k in range(self.layout.together):
                        at = start + k * self.layout.columns
                        data = self.tiles[n].rows(P, size, at, part=part)
                        b.emit("nc_matmul", total.rows(1, size), ones.rows(P, 1), data)
                    b.emit("tensor_copy", result.rows(1, size), total.rows(1, size))
                    to = self.stored[n].rows(1, size, c0 + start)
                    b.store(to, result.rows(1, size))
