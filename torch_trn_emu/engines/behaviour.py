"""What an engine module says about an instruction: what it computes and how long it takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chip import Chip, ElementwiseEngine
from ..isa import Access, Engine, Instruction, Memory, itemsize

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Behaviour", "clock_hz", "contiguous_in_sbuf", "elementwise_engine", "interval"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One opcode. `run` takes what was read, float32 or int64 [P, F...], and what the destination
    held (NaN where nothing was written), and gives what is written, before rounding.

    draws        it reads how many random words the program has drawn before: the generator's state
    accumulates  it reads which elements of the destination were written, last of all [P, F...]
    """

    opcode: str
    cycles: Callable[[Instruction, Chip], float]  # of the engine, until it can take the next one
    run: Callable[[Instruction, "Sequence[Array]", "Array"], "Sequence[Array]"]
    draws: bool = False
    accumulates: bool = False


def elementwise_engine(engine: Engine, chip: Chip) -> ElementwiseEngine:
    """The description of a 128-lane engine."""
    return {
        Engine.VECTOR: chip.vector_engine,
        Engine.SCALAR: chip.scalar_engine,
        Engine.GPSIMD: chip.gpsimd_engine,
    }[engine]


def clock_hz(engine: Engine, chip: Chip) -> float:
    """The clock that `cycles` of an instruction on `engine` count."""
    if engine is Engine.TENSOR:
        return chip.tensor_engine.clock_hz
    if engine in (Engine.SYNC, Engine.DMA):
        return chip.sync_clock_hz
    return elementwise_engine(engine, chip).clock_hz


def interval(i: Instruction, chip: Chip, cycles: float) -> float:
    """`cycles`, but no less than the engine's shortest instruction. [isa] max(MIN_II, N)

    GpSimd adds its start to the work instead. [isa] 150 + N
    """
    engine = elementwise_engine(i.engine, chip)
    if chip.wide_stride_bytes and any(
        _steps_wide(a, chip.wide_stride_bytes) for a in (*i.reads, *i.writes)
    ):
        cycles *= 2
    if i.engine is Engine.GPSIMD:
        return engine.min_interval_cycles + cycles
    return max(engine.min_interval_cycles, cycles)


def _steps_wide(a: Access, nbytes: int) -> bool:
    """Whether neighbours of a partition lie more than `nbytes` apart. [guide]"""
    steps = [stride for stride, count in a.pattern[1:] if count > 1]
    return bool(steps) and abs(steps[-1]) * itemsize(a.buffer.dtype) > nbytes


def contiguous_in_sbuf(accesses: Sequence[Access]) -> bool:
    """True if all lie in SBUF with adjacent elements in each partition."""
    return all(a.buffer.memory is Memory.SBUF and a.contiguous for a in accesses)
