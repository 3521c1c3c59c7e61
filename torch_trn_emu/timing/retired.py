"""What a scheduled Program leaves: how often each instruction ran and how long, and its records."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..chip import Chip
from ..isa import Engine, Instruction, Program
from .encode import Encoded

__all__ = ["PICOSECOND", "Record", "Retired", "Run", "retired"]

PICOSECOND = 1e-12  # the unit of csrc/timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """All executions of one instruction of a Program, and of those that differ from it only in
    where in their buffers they read and write.

    busy_s  its engine was taken, or its DMA engines, added up
    wait_s  its engine or queue stood still until its operands were there
    span_s  from start to end; for a DMA from the trigger to the last byte
    """

    instruction: Instruction
    count: int
    busy_s: float
    wait_s: float
    span_s: float


def retired(encoded: Encoded, sums: Iterable[tuple[int, int, int, int]]) -> tuple[Retired, ...]:
    """What csrc/timing gives of each instruction: executions, picoseconds busy, waiting, in all.

    What is left out because its tensor stays in SBUF retires nothing.
    """
    return tuple(
        Retired(
            instruction=instruction,
            count=count,
            busy_s=busy * PICOSECOND,
            wait_s=wait * PICOSECOND,
            span_s=span * PICOSECOND,
        )
        for instruction, (count, busy, wait, span) in zip(encoded.instructions, sums, strict=True)
        if not instruction.left_out
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One execution of one instruction, in a trace. Times are seconds from the program's start."""

    instruction: Instruction
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A Program scheduled on a chip: one core's time, which is that of all `program.cores`.

    total_s   from the first to the last instruction, and what starting and ending a program costs
    programs  so many equal ones, parts of a graph, are added up here
    """

    program: Program
    chip: Chip
    total_s: float
    retired: tuple[Retired, ...]
    dma_engine_busy_s: tuple[float, ...]
    hbm_busy_s: float
    table_loads: int
    simulated_instructions: int
    records: tuple[Record, ...] = ()
    programs: int = 1

    def engine_busy_s(self, engine: Engine) -> float:
        """How long `engine` was active; for DMA the busiest of its engines."""
        if engine is Engine.DMA:
            return max(self.dma_engine_busy_s)
        return sum(r.busy_s for r in self.retired if r.instruction.engine is engine)
