"""A bounded timeline of a Program: what each engine and DMA queue executed, as spans of time."""

from dataclasses import dataclass

from ..chip import Chip
from ..isa import Instruction, Program
from .encode import Encoded, encode

__all__ = ["Span", "lanes", "span_of"]

PICOSECOND = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """`count` executions that follow each other on one queue. Seconds from the program's start.

    instruction  the first one; `alike` says whether all are of it
    busy_s       their times added up; more than the span where transfers overlap
    """

    instruction: Instruction
    alike: bool
    start_s: float
    end_s: float
    busy_s: float
    count: int


def lanes(program: Program, chip: Chip, limit: int = 64) -> dict[str, tuple[Span, ...]]:
    """The spans of each queue of `program` in order, at most twice `limit` a queue.

    A queue that executes more than that has neighbours merged in pairs, until they fit: nothing is
    left out. Queues are engines ("tensor") and DMA queues ("dma sync"); idle ones are left out.
    Every loop is unrolled, so this takes as long as an unextrapolated schedule.
    """
    from .. import _C

    encoded = encode(program, chip)
    return {
        queue: tuple(span_of(encoded, span) for span in spans)
        for queue, spans in zip(
            encoded.queues, _C.schedule_lanes(encoded.words, limit), strict=True
        )
        if spans
    }


def span_of(encoded: Encoded, span: tuple[int, bool, int, int, int, int]) -> Span:
    """A span of the scheduler with its instruction, in seconds."""
    index, alike, start, end, busy, count = span
    return Span(
        instruction=encoded.instructions[index],
        alike=alike,
        start_s=start * PICOSECOND,
        end_s=end * PICOSECOND,
        busy_s=busy * PICOSECOND,
        count=count,
    )
