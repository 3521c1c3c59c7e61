"""The choice between programs that do the same."""

from collections.abc import Sequence

from ..calls import Target
from ..isa import Program
from ..timing import price

__all__ = ["faster"]

Programs = tuple[Program, ...]


def faster(ways: Sequence[Programs], target: Target) -> Programs:
    """The programs that take the least time; the first of equals."""
    start = target.chip.launch.kernel_overhead_s  # once for all programs of a launch

    def took(programs: Programs) -> float:
        return sum(price(p, target.chip).total_s - start for p in programs)

    return ways[0] if len(ways) == 1 else min(ways, key=took)
