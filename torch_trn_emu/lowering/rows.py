"""Programs over the rows of a matrix: rows on partitions, columns along the free dimension.

A program is a list of steps (`row_values.py`). `row_layout.py` says which rows share a partition or
have several. Rows too long for SBUF are cut in chunks: what comes before a reduction is then
computed once for the reduction and again after it, from what is loaded again.
"""

from collections.abc import Iterator, Sequence
from math import ceil, inf

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role, affine, itemsize, rows_of
from .limits import BANK, WIDE, P
from .row_layout import Layout, layout_of, spread
from .row_values import Kind, RowStep, Values

__all__ = ["flat_program", "row_program"]

FLAT_COLUMNS = (2048, 1024)  # chosen: 8 KiB of float32, enough for DMA's full rate, or half of it
SMALL_BYTES = 8192  # of a partition, for tiles of one column and sums on their way from PSUM


def row_program(
    name: str,
    rows: int,
    columns: int,
    values: Values,
    *,
    chip: Chip,
    cores: int = 1,
    inner: int = 1,
) -> Program:
    """The steps over [rows, columns, inner], reduced over columns; one core's share of the rows.

    Intermediate values are float32. A FULL or COLUMN output is stored tile by tile; a ROW output
    is added up over the core's rows.
    """
    share = ceil(rows / cores)
    plain = Layout(rows=share, columns=columns, inner=inner)
    for layout in (layout_of(share, columns, inner, values), plain):
        program = _RowProgram(Builder(name, cores=cores), layout, values, chip)
        if program.chunks == 1 or layout.values == 1:
            return program.build()
    raise KeyError(f"{columns} x {inner} elements of a row, which SBUF does not hold at once")


def flat_program(
    name: str, elements: int, values: Values, *, chip: Chip, cores: int = 1
) -> Program:
    """The steps over `elements` that no step joins to rows: rows as long as suits the chip.

    Shorter rows are worth it where only they let two tiles of rows work at once.
    """
    tried = []
    for most in FLAT_COLUMNS:
        columns = max(1, min(most, ceil(elements / (P * cores))))
        rows = ceil(elements / columns)
        b = Builder(name, cores=cores if rows >= cores else 1)
        layout = Layout(rows=ceil(rows / b.cores), columns=columns)
        tried.append(_RowProgram(b, layout, values, chip))
        if tried[-1].hides_latency:
            return tried[-1].build()
    return tried[0].build()


class _RowProgram:
    def __init__(self, b: Builder, layout: Layout, values: Values, chip: Chip) -> None:
        inputs, steps, outputs = values
        if layout.values > 1:
            steps = list(spread(steps, values.kinds))
        self.b, self.layout = b, layout
        self.rows, self.columns = _rows, columns = layout.lines, layout.width
        self.inputs = {i.name: i for i in inputs}
        self.steps = {s.name: s for s in steps}
        self.outputs = {o.name: o for o in outputs}
        self.places = self._shared()
        self.parts, self.width = self._fitting(chip)
        self.chunks = ceil(columns / self.width)
        shapes = {
            Kind.FULL: (layout.rows, layout.columns * layout.inner),
            Kind.COLUMN: (layout.rows, layout.inner),
            Kind.ROW: (1, layout.columns),
        }
        self.hbm = {i.name: b.hbm(i.name, shapes[i.kind], i.dtype, _role(i.kind)) for i in inputs}
        self.stored = {
            o.name: b.hbm(
                o.stored or f"out {o.name}", shapes[self.steps[o.name].kind], o.dtype, Role.OUTPUT
            )
            for o in outputs
        }
        self.tiles = {i.name: self._tile(i.name, i.kind, i.dtype, 2) for i in inputs}
        for s in steps:
            if s.name in self.places:
                continue
            dtype = self.outputs[s.name].dtype if s.name in self.outputs else "float32"
            self.tiles[s.name] = self._tile(s.name, s.kind, dtype, 1 + (s.name in self.outputs))
        self.tiles |= {name: self.tiles[place] for name, place in self.places.items()}
        self.partial = {
            s.name: b.sbuf(
                f"{s.name} of chunks",
                max(self.chunks, layout.values),
                "float32",
                slots=2,
                parts=self.parts,
            )
            for s in steps
            if s.reduces and (self.chunks > 1 or layout.pieces > 1)
        }
        self.whole = {name: self._of_pieces(name) for name in self.partial if layout.pieces > 1}

    def _tile(self, name: str, kind: Kind, dtype: str, slots: int) -> Buffer:
        if kind is Kind.COLUMN:
            return self.b.sbuf(f"{name} tile", self.layout.values, dtype, slots=2, parts=self.parts)
        if kind is Kind.ROW:  # stays for the whole program
            held = "float32" if name in self.steps else dtype
            return self.b.sbuf(f"{name} tile", self.width, held, parts=self.chunks)
        return self.b.sbuf(f"{name} tile", self.width, dtype, slots=slots, parts=self.parts)

    def _fitting(self, chip: Chip) -> tuple[int, int]:
        """Tiles of rows that go together, and columns of each.

        Two tiles hide the engines' latencies; one is better than to load the rows again in chunks.
        """
        most = 1 if self.rows <= P else 2
        for parts in range(most, 0, -1):
            if self._width(chip, parts) == self.columns:
                return parts, self.columns
        self.places = {}  # each chunk computes what it needs again, in another order
        return most, self._width(chip, most)

    @property
    def _reads_once(self) -> bool:
        """Whether rows are reduced, and nothing of them is used after."""
        reduces = any(s.reduces for s in self.steps.values())
        full = [s for s in self.steps.values() if s.kind is not Kind.COLUMN or s.reduces]
        return reduces and all(self._phase(r) == 0 for s in full for r in s.reads)

    def _width(self, chip: Chip, parts: int) -> int:
        """Columns that all tiles of a chunk leave room for; ROW values keep all columns."""
        usable = chip.sbuf.usable_bytes_per_partition - SMALL_BYTES
        if self.layout.values > 1:
            usable -= 8 * parts * self.layout.values * len(list(self._of(Kind.COLUMN)))
        kept = sum(
            4 if n in self.steps else itemsize(self.inputs[n].dtype) for n in self._of(Kind.ROW)
        )
        each = parts * sum(map(self._bytes, self._of(Kind.FULL)))
        longer = self.columns > WIDE and self.layout.values == 1
        if longer and self._reads_once:  # chunks, which move while others are worked on
            return WIDE
        if (each + kept) * self.columns <= usable:
            return self.columns
        room = (usable - kept * self.columns) / max(each + kept, 1)  # the last chunk is kept whole
        return max(1, min(self.columns, int(max(room, 256))))

    def _bytes(self, name: str) -> float:
        """What one column of a FULL value's tile takes, its slots included."""
        if name in self.places:
            return 0
        if name in self.inputs:
            return 2 * itemsize(self.inputs[name].dtype)
        return 2 * itemsize(self.outputs[name].dtype) if name in self.outputs else 4

    def _of(self, kind: Kind) -> Iterator[str]:
        yield from (i.name for i in self.inputs.values() if i.kind is kind)
        yield from (s.name for s in self.steps.values() if s.kind is kind)

    # --- order ---

    def _phase(self, name: str) -> int:
        """How many reductions over whole rows come before a value can be used."""
        if name in self.inputs:
            return 0
        s = self.steps[name]
        return max((self._phase(r) for r in s.reads), default=0) + s.reduces

    def _needed(self, names: Sequence[str]) -> list[str]:
        """The FULL values that `names` are made of, in order, and inputs to load."""
        wanted: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in wanted or (name in self.steps and self.steps[name].kind is Kind.COLUMN):
                continue
            wanted.add(name)
            if name in self.steps:
                pending += self.steps[name].reads
        return [n for n in (*self.inputs, *self.steps) if n in wanted]

    # --- room ---

    @property
    def hides_latency(self) -> bool:
        """Whether two tiles of rows are on chip, or one is all there is."""
        return self.rows <= P or self.parts > 1

    def _when(self) -> dict[str, tuple[float, float]]:
        """When each step over rows runs if a row is not cut: (phase, place in it)."""
        ends = {
            s.name: self._phase(s.name) - s.reduces
            for s in self.steps.values()
            if s.reduces or s.kind is Kind.ROW or (s.kind is Kind.FULL and s.name in self.outputs)
        }
        number = {name: k for k, name in enumerate(self.steps)}
        when: dict[str, tuple[float, float]] = {}
        for phase in sorted(set(ends.values())):
            now = [e for e, at in ends.items() if at == phase]
            for name in self._needed([r for e in now for r in (e, *self.steps[e].reads)]):
                if name in number:
                    when.setdefault(name, (phase, number[name]))
            when |= {e: (phase, inf) for e in now if self.steps[e].reduces}
        return when

    def _shared(self) -> dict[str, str]:
        """Steps that overwrite a value which they are the last to read, and whose tile that is."""
        when = self._when()
        last: dict[str, tuple[float, float]] = {}
        for name, at in when.items():
            for read in self.steps[name].reads:
                last[read] = max(last.get(read, at), at)
        places: dict[str, str] = {}
        for name in sorted(when, key=lambda n: when[n]):
            if self.steps[name].kind is not Kind.FULL or name in self.outputs:
                continue
            for read in self.steps[name].reads:
                known = self.steps.get(read)
                ends = last[read] == when[name]
                if known and known.kind is Kind.FULL and ends and read not in self.outputs:
                    places[name] = places.get(read, read)
                    break
        return places

    # --- emission ---

    def build(self) -> Program:
        self._constants()
        for r0, some in self.b.tiles(self.rows, P * self.parts):
            halves = [(h, min(P, some - h * P)) for h in range(ceil(some / P))]
            self._rows(r0, halves)
        self._finish_sums()
        return self.b.build()

    def _constants(self) -> None:
        for name in self._of(Kind.ROW):
            for part, c0, count in self.b.parts(self.columns, self.width):
                tile = self.tiles[name]
                whole = _box(tile, P, count, part=part)
                if name in self.steps:
                    self.b.emit("memset", whole, value=0.0)
                else:
                    self.b.load(*self._row(name, part, c0, count))

    def _rows(self, r0: Affine, halves: list[tuple[int, int]]) -> None:
        b = self.b
        b.fresh(*(self.tiles[n] for n in self._of(Kind.COLUMN)), *self.partial.values())
        for n in self._of(Kind.COLUMN):
            if n in self.inputs:
                for h, size in halves:
                    b.load(*self._column(self.tiles[n], self.hbm[n], r0, h, size))
        last = max((self._phase(n) for n in self.steps), default=0)
        done: set[str] = set()
        for phase in range(last + 1):
            self._columns(phase, halves)
            ends = [
                s.name
                for s in self.steps.values()
                if (s.reduces and self._phase(s.name) == phase + 1)
                or (
                    self._phase(s.name) == phase
                    and (s.kind is Kind.ROW or (s.kind is Kind.FULL and s.name in self.outputs))
                )
            ]
            if ends:
                self._chunks(r0, halves, ends, done)
        for n in self.outputs:
            if self.steps[n].kind is Kind.COLUMN:
                for h, size in halves:
                    here, to = self._column(self.tiles[n], self.stored[n], r0, h, size, once=True)
                    b.store(to, here)

    def _columns(self, phase: int, halves: list[tuple[int, int]]) -> None:
        """COLUMN steps whose operands are complete now."""
        for s in self.steps.values():
            if s.kind is not Kind.COLUMN or s.reduces or self._phase(s.name) != phase:
                continue
            for h, size in halves:
                reads = [self._values(self.tiles[r], h, size) for r in s.reads]
                to = self._values(self.tiles[s.name], h, size)
                self.b.emit(s.opcode, to, *reads, engine=s.engine, **s.attributes)

    def _chunks(
        self, r0: Affine, halves: list[tuple[int, int]], ends: list[str], done: set[str]
    ) -> None:
        reductions = [s for n in ends if (s := self.steps[n]).reduces]
        for part, c0, count in self.b.parts(self.columns, self.width):
            for n in self._needed([r for e in ends for r in (e, *self.steps[e].reads)]):
                if n in done:
                    continue
                if self.chunks == 1:
                    done.add(n)
                if n in self.inputs:
                    if self.inputs[n].kind is Kind.FULL:
                        self._load(n, r0, c0, count, halves)
                elif self.steps[n].kind is not Kind.COLUMN:
                    self._full(self.steps[n], part, count, halves)
            for s in reductions:
                for h, size in halves:
                    data = self._by_row(self.tiles[s.reads[0]], h, size, count)
                    target = self.partial.get(s.name)
                    to = (
                        _box(target, size, self.layout.values, offset=part, part=h)
                        if target
                        else self._values(self.tiles[s.name], h, size)
                    )
                    self.b.emit("tensor_reduce", to, data, **s.attributes)
            for n in ends:
                if n in self.outputs and self.steps[n].kind is Kind.FULL:
                    for h, size in halves:
                        to = self._memory(self.stored[n], r0, h, size, c0, count)
                        self.b.store(to, _box(self.tiles[n], size, count, part=h))
        for s in reductions:
            if s.name in self.partial:
                self._finish(s, halves)

    def _finish(self, s: RowStep, halves: list[tuple[int, int]]) -> None:
        """A reduction from its chunks, then from its pieces, which memory brings together."""
        b, how = self.b, self.layout
        for h, size in halves:
            data, to = _box(self.partial[s.name], size, self.chunks, part=h), self.tiles[s.name]
            if how.pieces == 1:
                b.emit("tensor_reduce", _box(to, size, 1, part=h), data, **s.attributes)
                continue
            own, scratch, together = self.whole[s.name]
            b.fresh(own, together)
            if self.chunks > 1:
                b.emit("tensor_reduce", _box(own, size, 1), data, **s.attributes)
            else:
                own = self.partial[s.name]
            b.store(_box(scratch, size, how.values), _box(own, size, how.values))
            row = how.pieces * how.values
            there = Access(buffer=scratch, pattern=((row, how.rows), (0, how.pieces), (1, row)))
            b.load(_box(together, size, row), there)
            by_value = ((row, size), (1, how.values), (how.values, how.pieces))
            parts = Access(buffer=together, pattern=by_value)
            b.emit("tensor_reduce", _box(to, size, how.values), parts, **s.attributes)

    def _of_pieces(self, name: str) -> tuple[Buffer, Buffer, Buffer]:
        """What a piece gives, in SBUF and in memory, and what all of its block give."""
        b, values = self.b, self.layout.values
        own = b.sbuf(f"{name} of a piece", 1, "float32", slots=2)
        scratch = b.hbm(f"{name} of pieces", (self.rows, values), "float32", Role.SCRATCH)
        whole = b.sbuf(f"{name} of a row", self.layout.pieces * values, "float32", slots=2)
        return own, scratch, whole

    # --- where values lie ---

    def _memory(self, hbm: Buffer, r0: Affine, h: int, size: int, c0: Affine, count: int) -> Access:
        """Columns of a tile of lines in memory."""
        at = (r0 + h * P) * self.columns + c0
        return Access(buffer=hbm, offset=at, pattern=((self.columns, size), (1, count)))

    def _values(self, tile: Buffer, h: int, size: int) -> Access:
        """A COLUMN of a tile of lines."""
        return _box(tile, size, self.layout.values, part=h)

    def _by_row(self, tile: Buffer, h: int, size: int, count: int) -> Access:
        """A FULL tile with what is reduced innermost."""
        how = self.layout
        if how.values == 1:
            return _box(tile, size, count, part=h)
        block = how.reduced * how.inner
        blocks = ((block, how.together), (1, how.inner), (how.inner, how.reduced))
        return Access(buffer=tile, pattern=((tile.row_elements, size), *blocks), part=Affine(h))

    def _repeated(self, tile: Buffer, h: int, size: int, count: int) -> Access:
        """A COLUMN for every element of a FULL tile."""
        how = self.layout
        inner = [(how.inner, how.together), (0, how.reduced), (1, how.inner)]
        if how.values == 1:  # which may be cut in chunks
            inner = [(0, count)]
        return Access(buffer=tile, pattern=((how.values, size), *inner), part=Affine(h))

    def _row(self, name: str, part: Affine, c0: Affine, count: int) -> tuple[Access, Access]:
        """(where a ROW lies on every partition, what it is in memory)"""
        how = self.layout
        lines = self.rows if how.pieces > 1 else P
        repeats = ((0, lines // how.pieces), (self.columns, how.pieces), (0, how.together))
        source = Access(
            buffer=self.hbm[name], offset=c0, pattern=(*repeats, (1, count // how.together))
        )
        return _box(self.tiles[name], lines, count, part=part), source

    def _column(
        self, tile: Buffer, hbm: Buffer, r0: Affine, h: int, size: int, *, once: bool = False
    ) -> tuple[Access, Access]:
        """(a COLUMN of a tile of lines, what it is in memory); `once` for each row of pieces"""
        how = self.layout
        if how.pieces == 1:
            at, line = (r0 + h * P) * how.values, ((how.values, size), (1, how.values))
            return self._values(tile, h, size), Access(buffer=hbm, offset=at, pattern=line)
        if once:
            row = how.pieces * how.values
            first = Access(buffer=tile, pattern=((row, how.rows), (1, how.values)))
            return first, _box(hbm, how.rows, how.values)
        every = ((how.values, how.rows), (0, how.pieces), (1, how.values))
        return self._values(tile, h, size), Access(buffer=hbm, pattern=every)

    # --- work on tiles ---

    def _load(
        self, n: str, r0: Affine, c0: Affine, count: int, halves: list[tuple[int, int]]
    ) -> None:
        self.b.fresh(self.tiles[n])
        for h, size in halves:
            source = self._memory(self.hbm[n], r0, h, size, c0, count)
            self.b.load(_box(self.tiles[n], size, count, part=h), source)

    def _full(self, s: RowStep, chunk: Affine, count: int, halves: list[tuple[int, int]]) -> None:
        b = self.b
        if s.kind is Kind.FULL and s.name not in self.places:
            b.fresh(self.tiles[s.name])
        for h, size in halves:
            reads = [self._operand(r, s.opcode, chunk, count, h, size) for r in s.reads]
            if s.kind is Kind.ROW:
                to = _box(self.tiles[s.name], size, count, part=chunk)
                b.emit("tensor_tensor", to, to, *reads, op="add")
                continue
            to = _box(self.tiles[s.name], size, count, part=h)
            b.emit(s.opcode, to, *reads, engine=s.engine, **s.attributes)

    def _operand(self, n: str, opcode: str, chunk: Affine, count: int, h: int, size: int) -> Access:
        kind = (self.steps.get(n) or self.inputs[n]).kind
        tile = self.tiles[n]
        if kind is Kind.ROW:
            return _box(tile, size, count, part=chunk)
        if kind is Kind.FULL:
            return _box(tile, size, count, part=h)
        if opcode in ("tensor_tensor", "select"):  # one value a row, repeated
            return self._repeated(tile, h, size, count)
        return _box(tile, size, 1, part=h)

    def _finish_sums(self) -> None:
        """Partitions added by a product with ones."""
        names = [n for n in self._of(Kind.ROW) if n in self.steps]
        if not names:
            return
        b = self.b
        ones = b.sbuf("ones", 1, "float32")
        total = b.psum("total", BANK, slots=2)
        result = b.sbuf("summed", BANK, "float32", slots=2)
        b.emit("memset", _box(ones, P, 1), value=1.0)
        for n in names:
            for part, c0, count in b.parts(self.columns, self.width):
                for start, size in b.tiles(count // self.layout.together, BANK):
                    b.fresh(total, result)
                    for k in range(self.layout.together):
                        at = start + k * self.layout.columns
                        data = _box(self.tiles[n], P, size, offset=at, part=part)
                        b.emit("nc_matmul", _box(total, 1, size), _box(ones, P, 1), data)
                    b.emit("tensor_copy", _box(result, 1, size), _box(total, 1, size))
                    to = _box(self.stored[n], 1, size, offset=c0 + start)
                    b.store(to, _box(result, 1, size))


def _box(
    buffer: Buffer,
    rows: int,
    columns: int,
    row: Affine | int = 0,
    *,
    offset: Affine | int = 0,
    part: Affine | int = 0,
) -> Access:
    """`rows` rows from `row` on, `columns` of each from `offset` on."""
    at = affine(row) * buffer.shape[-1] + affine(offset)
    return rows_of(buffer, rows, columns, at, part=part)


def _role(kind: Kind) -> Role:
    return Role.WEIGHT if kind is Kind.ROW else Role.INPUT
