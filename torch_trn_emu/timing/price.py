"""Prices a Program: encode, schedule, and put names and seconds back on the numbers."""

from collections.abc import Callable
from functools import cache
from typing import Any

from ..chip import Chip
from ..isa import Program
from . import reference
from .encode import encode
from .retired import PICOSECOND, Record, Run, retired

__all__ = ["price"]


def price(
    program: Program,
    chip: Chip,
    *,
    trace_limit: int = 0,
    extrapolate: bool = True,
    scheduler: Callable[..., Any] | None = None,
) -> Run:
    """Schedule `program` on `chip`.

    trace_limit  keep so many records of single executions; tracing unrolls all loops
    extrapolate  skip whole periods of loops in steady state, which is exact
    scheduler    another one than csrc/timing, for tests
    """
    encoded = encode(program, chip)
    raw = (scheduler or native())(encoded.words, extrapolate=extrapolate, trace_limit=trace_limit)
    total, sums, engines, hbm, table_loads, simulated, records = raw
    return Run(
        program=program,
        chip=chip,
        total_s=total * PICOSECOND + chip.launch.kernel_overhead_s,
        retired=retired(encoded, sums),
        dma_engine_busy_s=tuple(busy * PICOSECOND for busy in engines),
        hbm_busy_s=hbm * PICOSECOND,
        table_loads=table_loads,
        simulated_instructions=simulated,
        records=tuple(
            Record(
                instruction=encoded.instructions[index],
                start_s=start * PICOSECOND,
                end_s=end * PICOSECOND,
            )
            for index, start, end in records
        ),
    )


@cache
def native() -> Callable[..., Any]:
    """The scheduler in C++; imported late, so that chips and programs need no extension."""
    from .. import _C

    return _C.schedule


def unrolled(code: Any, *, extrapolate: bool, trace_limit: int) -> reference.Raw:
    """The reference twin with the native scheduler's signature."""
    return reference.schedule(code, trace_limit)
