"""Prices the programs of a graph as one schedule, without making one program of them.

Each distinct program is encoded once; csrc/timing/graph.cpp schedules them in the order of the
parts, on engines that run on. `repeats` says where the same parts follow each other: layers.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..chip import Chip
from ..isa import Engine, Memory, Program, Role
from ..isa.join import Part
from .encode import Encoded, encode
from .lanes import Span, span_of
from .retired import PICOSECOND, Run, retired

__all__ = ["GraphRun", "PartTimes", "graph_lanes", "price_graph", "repeats_of"]

READS, WRITES = 1, 2
LEAST_PERIODS = 6  # that are worth finding: four are scheduled (chosen)
MOST_CANDIDATES = 8  # lengths of a period that are tried (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTimes:
    """When a part of a graph ran, in seconds from the first instruction of the graph.

    added_s  while it was the first part that was not done; those of all parts add up to the total
    """

    start_s: float
    end_s: float
    added_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRun:
    """A graph on a chip.

    exec_s  from the first to the last instruction
    runs    one for each distinct program: what all parts that run it retired
    """

    exec_s: float
    parts: tuple[PartTimes, ...]
    runs: tuple[Run, ...]
    dma_engine_busy_s: tuple[float, ...]

    def engine_busy_s(self, engine: Engine) -> float:
        """How long `engine` was active; for DMA the busiest of its engines."""
        if engine is Engine.DMA:
            return max(self.dma_engine_busy_s)
        return sum(run.engine_busy_s(engine) for run in self.runs)


@dataclass(frozen=True, slots=True)
class _Encoded:
    encoded: Encoded
    native: Any
    buffers: dict[str, int]  # in HBM, by name
    flags: dict[int, int]  # of these: what the program reads, and may write
    others: tuple[tuple[int, ...], tuple[int, ...]]  # HBM buffers read and written


@dataclass(frozen=True, slots=True)
class _On:
    """A program on a chip."""

    program: Program
    chip: Chip

    def __hash__(self) -> int:  # a chip holds mappings; its name tells it apart
        return hash((self.program, self.chip.name))


@lru_cache(maxsize=4096)
def _encoded(on: _On) -> _Encoded:
    from .. import _C

    program, chip = on.program, on.chip
    encoded = encode(program, chip)
    hbm = [(k, b.role) for k, b in enumerate(program.buffers) if b.memory is Memory.HBM]
    read = tuple(k for k, role in hbm if role in (Role.INPUT, Role.WEIGHT))
    written = tuple(k for k, role in hbm if role is Role.OUTPUT)
    flags = {k: READS if k in read else READS | WRITES for k, _ in hbm}
    names = {program.buffers[k].name: k for k, _ in hbm}
    return _Encoded(encoded, _C.decode_program(encoded.words), names, flags, (read, written))


def price_graph(
    parts: Sequence[Part], chip: Chip, ordered: frozenset[str], *, extrapolate: bool = True
) -> GraphRun:
    """Schedule the programs of a graph; tensors in `ordered` are written in place."""
    graph = _Words(parts, chip, ordered)
    total, times, sums, _ = graph.schedule(extrapolate=extrapolate)
    runs = tuple(
        _run(p.encoded, program, chip, sum_)
        for p, program, sum_ in zip(graph.encoded, graph.programs, sums, strict=True)
    )
    busy = zip(*(run.dma_engine_busy_s for run in runs), strict=True)
    return GraphRun(
        exec_s=total * PICOSECOND,
        parts=tuple(
            PartTimes(start_s=a * PICOSECOND, end_s=b * PICOSECOND, added_s=c * PICOSECOND)
            for a, b, c in times
        ),
        runs=runs,
        dma_engine_busy_s=tuple(map(sum, busy)),
    )


def graph_lanes(
    parts: Sequence[Part], chip: Chip, ordered: frozenset[str], limit: int
) -> dict[str, tuple[Span, ...]]:
    """The spans of each queue as `lanes` gives them, DMA queues of one name as one.

    Each part has spans of its own: at least one, and with the others' about `limit`.
    """
    graph = _Words(parts, chip, ordered)
    found = graph.schedule(lane_limit=max(1, limit // len(parts)))[3]
    merged: dict[str, list[Span]] = {}
    for part, queues in zip(parts, found, strict=True):
        encoded = graph.encoded[graph.numbers[id(part.program)]].encoded
        for queue, spans in zip(encoded.queues, queues, strict=True):
            made = (span_of(encoded, span) for span in spans)
            merged.setdefault(queue, []).extend(s for s in made if not s.instruction.left_out)
    return {q: tuple(sorted(s, key=lambda x: x.start_s)) for q, s in merged.items() if s}


Row = tuple[int, list[tuple[int, int, int]]]  # a part: its program, (buffer, tensor, flags)


class _Words:
    """The graph as csrc/timing/bind.cpp reads it."""

    def __init__(self, parts: Sequence[Part], chip: Chip, ordered: frozenset[str]) -> None:
        self.programs = list({id(p.program): p.program for p in parts}.values())
        self.numbers = {id(p): k for k, p in enumerate(self.programs)}
        self.encoded = [_encoded(_On(program, chip)) for program in self.programs]
        tensors: dict[str, int] = {}
        rows: list[Row] = [self._links(part, tensors) for part in parts]
        repeats = repeats_of(rows)
        words = array("q", (0, chip.sbuf.usable_bytes_per_partition))
        words.append(chip.psum.usable_bytes_per_partition)
        words.append(len(tensors))
        words.extend(int(name in ordered) for name in tensors)
        words.append(len(repeats))
        for repeat in repeats:
            words.extend(repeat)
        words.append(len(rows))
        for number, links in rows:
            words.extend((number, len(links)))
            for link in links:
                words.extend(link)
        self.words = words

    def _links(self, part: Part, tensors: dict[str, int]) -> Row:
        number = self.numbers[id(part.program)]
        own = self.encoded[number]
        known = {own.buffers[b] for b in part.tensors}
        links = [
            (own.buffers[b], tensors.setdefault(t, len(tensors)), own.flags[own.buffers[b]])
            for b, t in part.tensors.items()
        ]
        for flag, buffers, names in ((READS, own.others[0], part.reads),
                                     (WRITES, own.others[1], part.makes)):  # fmt: skip
            links += [
                (k, tensors.setdefault(t, len(tensors)), flag)
                for k in buffers
                if k not in known
                for t in names
            ]
        return number, links

    def schedule(self, *, extrapolate: bool = True, lane_limit: int = 0) -> Any:
        from .. import _C

        native = [p.native for p in self.encoded]
        return _C.schedule_graph(native, self.words, extrapolate, lane_limit)


def _run(encoded: Encoded, program: Program, chip: Chip, sums: Any) -> Run:
    count, totals, dma, hbm, table_loads, simulated = sums
    return Run(
        program=program,
        chip=chip,
        total_s=0.0,  # parts have no time of their own
        retired=retired(encoded, totals),
        dma_engine_busy_s=tuple(busy * PICOSECOND for busy in dma),
        hbm_busy_s=hbm * PICOSECOND,
        table_loads=table_loads,
        simulated_instructions=simulated,
        programs=count,
    )


# --- what repeats ---------------------------------------------------------------------------------

_Relative = tuple[int, tuple[int, ...]]  # a part: its program, parts back to who wrote its tensors


def repeats_of(rows: Sequence[Row]) -> list[tuple[int, int, int]]:
    """Where the same parts follow each other: (first part, parts of a period, periods).

    Parts are the same if they run the same program on tensors that came from equally far back, or
    from far outside of the period.
    """
    if len(rows) < LEAST_PERIODS:
        return []
    parts = list(_relative(rows))
    best: list[tuple[int, int, int]] = []
    for period in _candidates(parts):
        found = list(_runs(parts, period))
        if sum(p * n for _, p, n in found) > sum(p * n for _, p, n in best):
            best = found
    return best


def _relative(rows: Sequence[Row]) -> Iterator[_Relative]:
    written: dict[int, int] = {}
    for k, (program, links) in enumerate(rows):
        yield program, tuple(k - written[t] if t in written else 0 for _, t, _ in links)
        written |= {t: k for _, t, flags in links if flags & WRITES}


def _candidates(parts: Sequence[_Relative]) -> list[int]:
    """How far apart equal programs are, what is most frequent first."""
    last: dict[int, int] = {}
    apart: Counter[int] = Counter()
    for k, (program, _) in enumerate(parts):
        if program in last:
            apart[k - last[program]] += 1
        last[program] = k
    return [period for period, _ in apart.most_common(MOST_CANDIDATES)]


def _runs(parts: Sequence[_Relative], period: int) -> Iterator[tuple[int, int, int]]:
    """The stretches in which each part is that of a period before; they share no parts."""
    start = end = 0
    for k in range(period, len(parts) + 1):
        if k < len(parts) and _alike(parts[k], parts[k - period], 2 * period):
            continue
        first = max(start, end)
        periods = (k - first) // period
        if periods >= LEAST_PERIODS:
            end = first + period * periods
            yield first, period, periods
        start = k + 1 - period


def _alike(a: _Relative, b: _Relative, far: int) -> bool:
    return a[0] == b[0] and (
        a[1] == b[1] or all(x == y or min(x, y) > far for x, y in zip(a[1], b[1], strict=True))
    )
