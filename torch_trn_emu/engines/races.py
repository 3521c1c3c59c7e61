"""Finds unordered accesses in programs with explicit semaphores, by vector clocks.

Two instructions are ordered if one stream issues both, or if a chain of signals and waits leads
from one to the other. A read or write that is not ordered after the last write of its data, or a
write that is not ordered after the reads, is a race. Streams are the engines, and each DMA queue.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UndefinedOnChip
from ..isa import Access, Engine, Instruction

__all__ = ["RaceDetector"]

Clock = dict[str, int]


@dataclass(slots=True)
class _History:
    """Who last wrote a part, and who read it since: stream, its time, opcode."""

    write: tuple[str, int, str] | None = None
    reads: list[tuple[str, int, str]] = field(default_factory=list)


def _stream(i: Instruction) -> str:
    return f"dma {i.queue}" if i.engine is Engine.DMA else i.engine.value


class RaceDetector:
    """Watches a run and raises UndefinedOnChip at the first race."""

    def __init__(self) -> None:
        self._clocks: dict[str, Clock] = {}
        self._signals: dict[str, list[Clock]] = {}
        self._parts: dict[tuple[int, int], _History] = {}

    def observe(self, i: Instruction, counters: Mapping[int, int]) -> None:
        """The next instruction in program order."""
        stream = _stream(i)
        clock = self._clocks.setdefault(stream, {})
        for wait in i.waits:
            value = wait.value.at(counters)
            raised = self._signals.get(wait.semaphore, [])
            if value > len(raised):
                raise UndefinedOnChip(
                    f"{i.opcode} on {stream} waits for {wait.semaphore} >= {value}, which is "
                    f"raised {len(raised)} times before it: the stream would hang."
                )
            for other in raised[:value]:
                _merge(clock, other)
        clock[stream] = clock.get(stream, 0) + 1
        for access in i.reads:
            self._read(i, stream, clock, access, counters)
        for access in i.writes:
            self._write(i, stream, clock, access, counters)
        for semaphore in i.signals:
            self._signals.setdefault(semaphore, []).append(dict(clock))

    def _history(self, access: Access, counters: Mapping[int, int]) -> _History:
        key = (id(access.buffer), access.part.at(counters))
        return self._parts.setdefault(key, _History())

    def _read(
        self, i: Instruction, stream: str, clock: Clock, a: Access, counters: Mapping[int, int]
    ) -> None:
        history = self._history(a, counters)
        _check(i, stream, clock, a, "reads", history.write, "write")
        history.reads.append((stream, clock[stream], i.opcode))

    def _write(
        self, i: Instruction, stream: str, clock: Clock, a: Access, counters: Mapping[int, int]
    ) -> None:
        history = self._history(a, counters)
        _check(i, stream, clock, a, "writes", history.write, "write")
        for read in history.reads:
            if read[2] != i.opcode or read[:2] != (stream, clock[stream]):
                _check(i, stream, clock, a, "writes", read, "read")
        history.write, history.reads = (stream, clock[stream], i.opcode), []


def _merge(clock: Clock, other: Clock) -> None:
    for stream, time in other.items():
        clock[stream] = max(clock.get(stream, 0), time)


def _check(
    i: Instruction,
    stream: str,
    clock: Clock,
    access: Access,
    verb: str,
    before: tuple[str, int, str] | None,
    what: str,
) -> None:
    if before is not None and clock.get(before[0], 0) < before[1]:
        raise UndefinedOnChip(
            f"race: {i.opcode} on {stream} {verb} {access.buffer.name}, and nothing orders it "
            f"after the {what} by {before[2]} on {before[0]}. Wait for a semaphore that it signals."
        )
