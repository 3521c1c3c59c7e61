"""Programs over the rows of a matrix: rows on partitions, columns along the free dimension.

A program is a list of steps. A step's result is FULL [R, C], a COLUMN [R, 1] (one value a row) or a
ROW [1, C] (summed over the rows). Rows too long for SBUF are cut in chunks: what comes before
a reduction is then computed once for the reduction and again after it, from what is loaded again.

    Inputs and steps are called by name; softmax's gradient, for example:
    [Step("gy", "tensor_tensor", ("g", "y"), op="multiply"), reduced("s", "gy"), ...]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import ceil, inf
from types import MappingProxyType
from typing import Any, NamedTuple

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Engine, Program, Role, affine, itemsize, rows_of
from .limits import BANK, P

__all__ = [
    "Input",
    "Kind",
    "Output",
    "RowStep",
    "Values",
    "column_sum",
    "reduced",
    "row_program",
    "step",
]

FLAT_COLUMNS = (2048, 1024)  # chosen: 8 KiB of float32, enough for DMA's full rate, or half of it
SMALL_BYTES = 8192  # of a partition, for tiles of one column and sums on their way from PSUM
# Instructions that also add up what they make, by those that do not. [isa] 16384 elements at most
SUMMING = MappingProxyType({"activation": "activation_reduce", "exponential": "exponential"})
MOST_SUMMED = 16384


class Kind(str, Enum):
    FULL = "full"
    COLUMN = "column"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    dtype: str
    kind: Kind = Kind.FULL


@dataclass(frozen=True, slots=True)
class Output:
    name: str  # of the step stored
    dtype: str


@dataclass(frozen=True, slots=True)
class RowStep:
    """One instruction for every tile of rows, or the sum over the rows for `column_sum`."""

    name: str
    opcode: str
    reads: tuple[str, ...]
    attributes: MappingProxyType[str, Any]
    kind: Kind
    engine: Engine | None = None

    @property
    def reduces(self) -> bool:
        return self.opcode == "tensor_reduce"

    def is_sum_of(self, other: "RowStep") -> bool:
        """Whether the instruction that makes `other` adds its rows up as well."""
        adds = self.reduces and self.attributes == {"op": "add"}
        return adds and self.reads == (other.name,) and other.opcode in SUMMING


def step(
    name: str,
    opcode: str,
    *reads: str,
    kind: Kind = Kind.FULL,
    engine: Engine | None = None,
    **attributes: Any,
) -> RowStep:
    """An elementwise instruction; operands may be FULL, ROW (repeated) or COLUMN (one a row)."""
    return RowStep(name, opcode, reads, MappingProxyType(attributes), kind, engine)


def reduced(name: str, of: str, op: str = "add") -> RowStep:
    """The reduction of every row of a FULL value."""
    return RowStep(name, "tensor_reduce", (of,), MappingProxyType({"op": op}), Kind.COLUMN)


def column_sum(name: str, of: str) -> RowStep:
    """The sum over the rows of a FULL value."""
    return RowStep(name, "column_sum", (of,), MappingProxyType({}), Kind.ROW)


class Values(NamedTuple):
    """What a program reads, computes and stores."""

    inputs: Sequence[Input]
    steps: Sequence[RowStep]
    outputs: Sequence[Output]


def row_program(
    name: str, rows: int, columns: int, values: Values, *, chip: Chip, cores: int = 1
) -> Program:
    """The steps over `rows` x `columns`; one core's share of the rows.

    Intermediate values are float32. A FULL or COLUMN output is stored tile by tile; a ROW output
    is added up over the core's rows.
    """
    return _RowProgram(Builder(name, cores=cores), rows, columns, values, chip).build()


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
        tried.append(_RowProgram(b, rows, columns, values, chip))
        if tried[-1].hides_latency:
            return tried[-1].build()
    return tried[0].build()


class _RowProgram:
    def __init__(self, b: Builder, all_rows: int, columns: int, values: Values, chip: Chip) -> None:
        inputs, steps, outputs = values
        rows = ceil(all_rows / b.cores)
        self.b, self.rows, self.columns = b, rows, columns
        self.inputs = {i.name: i for i in inputs}
        self.steps = {s.name: s for s in steps}
        self.outputs = {o.name: o for o in outputs}
        self.places = self._shared()
        self.parts, self.width = self._fitting(chip)
        self.chunks = ceil(columns / self.width)
        shapes = {Kind.FULL: (rows, columns), Kind.COLUMN: (rows, 1), Kind.ROW: (1, columns)}
        self.hbm = {i.name: b.hbm(i.name, shapes[i.kind], i.dtype, _role(i.kind)) for i in inputs}
        self.stored = {
            o.name: b.hbm(f"out {o.name}", shapes[self.steps[o.name].kind], o.dtype, Role.OUTPUT)
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
            s.name: b.sbuf(f"{s.name} of chunks", self.chunks, "float32", slots=2, parts=self.parts)
            for s in steps
            if s.reduces and self.chunks > 1
        }

    def _tile(self, name: str, kind: Kind, dtype: str, slots: int) -> Buffer:
        if kind is Kind.COLUMN:
            return self.b.sbuf(f"{name} tile", 1, dtype, slots=2, parts=self.parts)
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

    def _width(self, chip: Chip, parts: int) -> int:
        """Columns that all tiles of a chunk leave room for; ROW values keep all columns."""
        usable = chip.sbuf.usable_bytes_per_partition - SMALL_BYTES
        kept = sum(
            4 if n in self.steps else itemsize(self.inputs[n].dtype) for n in self._of(Kind.ROW)
        )
        each = parts * sum(map(self._bytes, self._of(Kind.FULL)))
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
                    source = Access(buffer=self.hbm[name], offset=c0, pattern=((0, P), (1, count)))
                    self.b.load(whole, source)

    def _rows(self, r0: Affine, halves: list[tuple[int, int]]) -> None:
        b = self.b
        b.fresh(*(self.tiles[n] for n in self._of(Kind.COLUMN)), *self.partial.values())
        for n in self._of(Kind.COLUMN):
            if n in self.inputs:
                for h, size in halves:
                    source = _box(self.hbm[n], size, 1, r0 + h * P)
                    b.load(_box(self.tiles[n], size, 1, part=h), source)
        last = max((self._phase(n) for n in self.steps), default=0)
        done: set[str] = set()
        self.small: set[tuple[str, int]] = set()  # values of one column that are there
        for phase in range(last + 1):
            if self.chunks > 1:
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
                    self._column(n, h, size)
                    to = _box(self.stored[n], size, 1, r0 + h * P)
                    b.store(to, _box(self.tiles[n], size, 1, part=h))

    def _columns(self, phase: int, halves: list[tuple[int, int]]) -> None:
        """COLUMN steps whose operands are complete now."""
        for s in self.steps.values():
            if s.kind is Kind.COLUMN and not s.reduces and self._phase(s.name) == phase:
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
        reads = [_box(self.tiles[r], size, 1, part=h) for r in s.reads]
        to = _box(self.tiles[name], size, 1, part=h)
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
        for part, c0, count in self.b.parts(self.columns, self.width):
            summed: set[str] = set()
            for n in self._needed([r for e in ends for r in (e, *self.steps[e].reads)]):
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
                    data = _box(self.tiles[s.reads[0]], size, count, part=h)
                    to = self._reduced(s.name, part, h, size)
                    self.b.emit("tensor_reduce", to, data, **s.attributes)
                    if self.chunks == 1:
                        self._follow(s.name, h, size)
            for n in ends:
                if n in self.outputs and self.steps[n].kind is Kind.FULL:
                    for h, size in halves:
                        to = _box(self.stored[n], size, count, r0 + h * P, offset=c0)
                        self.b.store(to, _box(self.tiles[n], size, count, part=h))
        for s in reductions:
            if s.name in self.partial:
                for h, size in halves:
                    data = _box(self.partial[s.name], size, self.chunks, part=h)
                    to = _box(self.tiles[s.name], size, 1, part=h)
                    self.b.emit("tensor_reduce", to, data, **s.attributes)

    @staticmethod
    def _sum_of(made: RowStep, reductions: list[RowStep], count: int) -> str:
        """The reduction that the instruction which makes a value does as well, or ""."""
        fits = made.kind is Kind.FULL and count <= MOST_SUMMED
        return next((s.name for s in reductions if fits and s.is_sum_of(made)), "")

    def _reduced(self, name: str, chunk: Affine, h: int, size: int) -> Access:
        """Where a reduction of a chunk goes."""
        if name in self.partial:
            return _box(self.partial[name], size, 1, offset=chunk, part=h)
        return _box(self.tiles[name], size, 1, part=h)

    def _load(
        self, n: str, r0: Affine, c0: Affine, count: int, halves: list[tuple[int, int]]
    ) -> None:
        self.b.fresh(self.tiles[n])
        for h, size in halves:
            source = _box(self.hbm[n], size, count, r0 + h * P, offset=c0)
            self.b.load(_box(self.tiles[n], size, count, part=h), source)

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
            reads = [self._operand(r, s.opcode, chunk, count, h, size) for r in s.reads]
            if s.kind is Kind.ROW:
                to = _box(self.tiles[s.name], size, count, part=chunk)
                b.emit("tensor_tensor", to, to, *reads, op="add")
                continue
            to = _box(self.tiles[s.name], size, count, part=h)
            if total:
                both = (to, self._reduced(total, chunk, h, size))
                b.emit(SUMMING[s.opcode], both, *reads, engine=s.engine, **s.attributes)
            else:
                b.emit(s.opcode, to, *reads, engine=s.engine, **s.attributes)

    def _operand(self, n: str, opcode: str, chunk: Affine, count: int, h: int, size: int) -> Access:
        kind = (self.steps.get(n) or self.inputs[n]).kind
        tile = self.tiles[n]
        if kind is Kind.ROW:
            return _box(tile, size, count, part=chunk)
        if kind is Kind.FULL:
            return _box(tile, size, count, part=h)
        if opcode in ("tensor_tensor", "select"):  # one value a row, repeated
            return Access(buffer=tile, pattern=((1, size), (0, count)), part=Affine(h))
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
                for start, size in b.tiles(count, BANK):
                    b.fresh(total, result)
                    data = _box(self.tiles[n], P, size, offset=start, part=part)
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
