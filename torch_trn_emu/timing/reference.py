"""The scheduler's twin in Python, the definition: every loop unrolled, nothing clever. For tests.

It reads the same encoding as csrc/timing and gives the same numbers, to the picosecond.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

__all__ = ["schedule"]

REORDER_WINDOW = 32
GAPS = 16
TENSOR_QUEUE = 0
NOBODY, SEVERAL = -1, -2

Raw = tuple[
    int, list[tuple[int, int, int, int]], list[int], int, int, int, list[tuple[int, int, int]]
]


@dataclass
class _Timeline:
    """A shared resource and the gaps it left: (start, end, number of the request that left it)."""

    frontier: int = 0
    requests: int = 0
    gaps: list[tuple[int, int, int]] = field(default_factory=list)

    def reserve(self, start: int, work: int) -> int:
        done = start
        for gap in list(self.gaps):
            begin, end, born = gap
            if work == 0 or end <= start or gap not in self.gaps:
                continue
            used_from = max(begin, start)
            used = min(work, end - used_from)
            work -= used
            done = used_from + used
            at = self.gaps.index(gap)
            self.gaps.pop(at)
            for rest in ((done, end, born), (begin, used_from, born)):
                if rest[1] > rest[0]:
                    self.gaps.insert(at, rest)
            del self.gaps[: max(0, len(self.gaps) - GAPS)]
        if work > 0:
            begin = max(self.frontier, start)
            if begin > self.frontier:
                self.gaps.append((self.frontier, begin, self.requests))
                del self.gaps[: max(0, len(self.gaps) - GAPS)]
            self.frontier = done = begin + work
        self.requests += 1
        self.gaps = [g for g in self.gaps if self.requests - g[2] < REORDER_WINDOW]
        return done


@dataclass
class _Region:
    """One part of one slot: when its last write and its reads are done, and by which queue."""

    write_done: int = 0
    writer: int = NOBODY
    read_done: int = 0
    reader: int = NOBODY


@dataclass
class _Access:
    write: bool
    buffer: int
    part: int
    age: int
    terms: list[tuple[int, int]]


@dataclass
class _Instruction:
    queue: int
    busy: int
    latency: int
    table: int
    ports: int
    engines: int
    engine_busy: int
    hbm_busy: int
    accesses: list[_Access]
    totals: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


def schedule(code: Sequence[int], trace_limit: int = 0) -> Raw:
    """What `csrc/timing` gives: total, sums per instruction, DMA engines, HBM, tables, records."""
    return _Scheduler(code).run(trace_limit)


class _Scheduler:
    def __init__(self, code: Sequence[int]) -> None:
        words = iter(code)
        (_, queues, _, buffers, instructions, nodes) = _take(words, 6)
        (self.semaphore, self.dma_issue, self.dma_start) = _take(words, 3)
        (self.dma_completion, self.table_load, engines, self.warm_up) = _take(words, 4)
        self.buffers = [_take(words, 5) for _ in range(buffers)]
        self.instructions = [_read_instruction(words) for _ in range(instructions)]
        self.nodes = [_take(words, 4) for _ in range(nodes)]
        self.queue_ready = [0] * queues
        self.slot = [slots - 1 for _, slots, *_ in self.buffers]
        self.regions: dict[tuple[int, int, int], _Region] = {}
        self.engines = [_Timeline() for _ in range(engines)]
        self.engine_busy = [0] * engines
        self.next_engine = 0
        self.alike = True  # until a transfer uses some engines only, none has a number
        self.hbm, self.hbm_busy = _Timeline(), 0
        self.ports = {1: 0, 2: 0}
        self.table, self.table_loads = 0, 0
        self.warmth, self.warm = 0, False
        self.total, self.simulated = 0, 0
        self.counters: dict[int, int] = {}
        self.records: list[tuple[int, int, int]] = []

    def run(self, trace_limit: int) -> Raw:
        self._body(0, len(self.nodes))
        totals = [(t[0], t[1], t[2], t[3]) for t in (i.totals for i in self.instructions)]
        return (
            self.total,
            totals,
            self.engine_busy,
            self.hbm_busy,
            self.table_loads,
            self.simulated,
            self.records[:trace_limit],
        )

    def _body(self, start: int, end: int) -> None:
        at = start
        while at < end:
            kind, index, trip, length = self.nodes[at]
            if kind == 0:
                for counter in range(trip):
                    self.counters[index] = counter
                    self._body(at + 1, at + 1 + length)
                at += length
            elif kind == 1:
                self._issue(index)
            elif kind == 3:
                self._hold(index, trip)
            else:
                self.slot[index] = (self.slot[index] + 1) % self.buffers[index][1]
            at += 1

    def _region(self, a: _Access) -> _Region:
        part = a.part + sum(c * self.counters[loop] for loop, c in a.terms)
        slot = (self.slot[a.buffer] - a.age) % self.buffers[a.buffer][1]
        return self.regions.setdefault((a.buffer, slot, part), _Region())

    def _hold(self, buffer: int, taken: int) -> None:
        """Until the uses of `taken` are over, others use the memory of `buffer`."""
        parts, slots, _, memory, _ = self.buffers[buffer]
        uses = [r for key, r in self.regions.items() if key[0] == taken]
        until = max((max(r.write_done, r.read_done * (memory > 0)) for r in uses), default=0)
        for slot, part in product(range(slots), range(parts)) if until else ():
            r = self.regions.setdefault((buffer, slot, part), _Region())
            if memory:
                r.reader, r.read_done = SEVERAL, max(r.read_done, until)
            else:
                r.writer, r.write_done = SEVERAL, max(r.write_done, until)

    def _issue(self, index: int) -> None:
        i = self.instructions[index]
        ready = start = self.queue_ready[i.queue]
        regions = [self._region(a) for a in i.accesses]
        for a, r in zip(i.accesses, regions, strict=True):
            if not a.write and r.writer != NOBODY:
                start = max(start, r.write_done + (self.semaphore if r.writer != i.queue else 0))
            if a.write and self.buffers[a.buffer][2]:
                if r.reader not in (NOBODY, i.queue):
                    start = max(start, r.read_done + self.semaphore)
                if r.writer not in (NOBODY, i.queue):
                    start = max(start, r.write_done + self.semaphore)
        i.totals[0] += 1
        i.totals[2] += start - ready
        if i.engines:
            self.queue_ready[i.queue] = start + self.dma_issue
            end = self._transfer(i, start + self.dma_start)
            read_done = done = end + self.dma_completion
            i.totals[1] += i.engines * i.engine_busy
        else:
            held = [p for p in self.ports if i.ports & p]
            start = max([start] + [self.ports[p] for p in held])
            for p in held:
                self.ports[p] = start + i.busy
            busy = self._throttled(i, start - ready) + self._table(i)
            self.queue_ready[i.queue] = read_done = end = start + busy
            done = end + i.latency
            i.totals[1] += busy
        i.totals[3] += end - start
        for a, r in zip(i.accesses, regions, strict=True):
            self._mark(a, r, i.queue, read_done, done)
        self.total = max(self.total, done)
        self.simulated += 1
        self.records.append((index, start, end))

    def _mark(self, a: _Access, r: _Region, queue: int, read_done: int, done: int) -> None:
        if not a.write:
            r.reader = queue if r.reader in (NOBODY, queue) else SEVERAL
            r.read_done = max(r.read_done, read_done)
            return
        ordered = self.buffers[a.buffer][2]
        r.writer = queue if ordered or r.writer in (NOBODY, queue) else SEVERAL
        r.write_done = max(r.write_done, done)
        r.reader, r.read_done = NOBODY, 0

    def _throttled(self, i: _Instruction, idle: int) -> int:
        if i.queue != TENSOR_QUEUE or self.warm_up == 0:
            return i.busy
        self.warmth = max(0, self.warmth - idle)
        if self.warmth == 0:
            self.warm = False
        cold = 0 if self.warm else min(2 * i.busy, self.warm_up - self.warmth)
        taken = cold + i.busy - cold // 2  # half of the time at half duty
        self.warmth = min(self.warm_up, self.warmth + taken)
        self.warm = self.warm or self.warmth == self.warm_up
        return taken

    def _table(self, i: _Instruction) -> int:
        if i.table in (0, self.table):
            return 0
        self.table = i.table
        self.table_loads += 1
        return self.table_load

    def _transfer(self, i: _Instruction, start: int) -> int:
        count = len(self.engines)
        first = 0
        if not (self.alike and i.engines == count):
            self.alike = False
            first = self.next_engine
            self.next_engine = (self.next_engine + i.engines) % count
        end = start
        for k in range(i.engines):
            engine = (first + k) % count
            end = max(end, self.engines[engine].reserve(start, i.engine_busy))
            self.engine_busy[engine] += i.engine_busy
        if i.hbm_busy:
            end = max(end, self.hbm.reserve(start, i.hbm_busy))
            self.hbm_busy += i.hbm_busy
        return end


def _take(words: Iterator[int], count: int) -> list[int]:
    return [next(words) for _ in range(count)]


def _read_instruction(words: Iterator[int]) -> _Instruction:
    fields = _take(words, 8)
    accesses = []
    for _ in range(next(words)):
        write, buffer, part, age, terms = _take(words, 5)
        pairs = [(next(words), next(words)) for _ in range(terms)]
        accesses.append(_Access(bool(write), buffer, part, age, pairs))
    queue, busy, latency, table, ports, engines, engine_busy, hbm_busy = fields
    return _Instruction(
        queue=queue,
        busy=busy,
        latency=latency,
        table=table,
        ports=ports,
        engines=engines,
        engine_busy=engine_busy,
        hbm_busy=hbm_busy,
        accesses=accesses,
    )
