"""Collectives of an estimate: they run beside the core, which waits where a result is read.

Those of a group run one after the other. Checked on torch 2.13.0.
"""

from torch import Tensor
from torch.distributed import get_process_group_ranks

from ..calls import Target
from ..collectives import seconds_on
from ..compiler.communication import Exchange
from ..torch_private import compiled_c10d

__all__ = ["Exchanged", "is_awaited"]


def is_awaited(tensor: Tensor) -> bool:
    """Whether it is the result of a collective, which the operator that reads it waits for."""
    return type(tensor).__name__ == "AsyncCollectiveTensor"


class Exchanged:
    """When the collectives of each group end.

    active_s   their time
    exposed_s  the part of it in which the core waited
    end_s      the last one's end
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.count = 0
        self.active_s = self.exposed_s = self.end_s = 0.0
        self._free_s: dict[str, float] = {}  # by group
        self._ends: list[float] = []

    def begin(self) -> None:
        """Another graph, which counts its collectives from 0."""
        self._ends = []

    def issue(self, one: Exchange, ready_s: float, *, in_graph: bool) -> None:
        """A collective whose operands are ready."""
        ranks = get_process_group_ranks(compiled_c10d._resolve_process_group(one.group))
        chip, cores = self.target.chip, self.target.cores
        seconds = seconds_on(chip, cores, one.operation, one.bytes, ranks, in_graph)
        end = max(ready_s, self._free_s.get(one.group, 0.0)) + seconds
        self._free_s[one.group] = end
        self._ends.append(end)
        self.count += 1
        self.active_s += seconds
        self.end_s = max(self.end_s, end)

    def wait(self, number: int, now_s: float) -> float:
        """When the core goes on; -1 is the latest collective."""
        if not self._ends:
            return now_s
        after = max(now_s, self._ends[number])
        self.exposed_s += after - now_s
        return after
