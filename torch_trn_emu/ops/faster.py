"""The choice between programs that do the same."""

from collections.abc import Sequence

from ..calls import Target
from ..timing import price
from .op import Lowered

__all__ = ["faster"]


def faster(ways: Sequence[Lowered], target: Target) -> Lowered:
    """The programs that take the least time; the first of equals."""
    start = target.chip.launch.kernel_overhead_s  # once for all programs of a launch

    def took(programs: Lowered) -> float:
        return sum(price(p, target.chip).total_s - start for p in programs)

    return ways[0] if len(ways) == 1 else min(ways, key=took)
