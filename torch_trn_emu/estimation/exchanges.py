"""Collectives of an estimate: they run beside the core, which waits where a result is read.

Those of a group run one after the other. Checked on torch 2.13.0.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.distributed import get_process_group_ranks

from ..calls import Target
from ..collectives import seconds_on
from ..compiler.communication import Exchange
from ..torch_private import compiled_c10d

__all__ = ["Exchanged", "Exposure", "is_awaited"]


def is_awaited(tensor: Tensor) -> bool:
    """Whether it is the result of a collective, which the operator that reads it waits for."""
    return type(tensor).__name__ == "AsyncCollectiveTensor"


class Exposure:
    """How long the core waits for collectives alone, as csrc/runtime/exposure.h has it."""

    def __init__(self) -> None:
        self._settled_s = 0.0
        self._open: list[tuple[float, float]] = []  # which the core may still fill

    @property
    def seconds(self) -> float:
        return self._settled_s + sum(end - start for start, end in self._open)

    def hold(self, from_s: float, to_s: float) -> None:
        """What could begin waits until then."""
        if to_s > from_s:
            self._open.append((from_s, to_s))

    def busy(self, from_s: float, to_s: float, host_s: float) -> None:
        """The core works or waits for a dispatch; nothing that follows begins before `host_s`."""
        still: list[tuple[float, float]] = []
        for start, end in self._open:
            parts = ((start, min(end, from_s)), (max(start, to_s), end))
            for part in parts:
                if part[1] <= part[0]:
                    continue
                if part[1] <= host_s:
                    self._settled_s += part[1] - part[0]
                else:
                    still.append(part)
        self._open = still


class Exchanged:
    """When the collectives of each group end.

    active_s  their time
    end_s     the last one's end
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.count = 0
        self.active_s = self.end_s = 0.0
        self._free_s: dict[str, float] = {}  # by group
        self._ends: list[float] = []

    def begin(self) -> None:
        """Another graph, which counts its collectives from 0."""
        self._ends = []

    def issue(self, one: Exchange, ready_s: float, *, in_graph: bool) -> None:
        """A functional collective whose operands are ready."""
        ranks = get_process_group_ranks(compiled_c10d._resolve_process_group(one.group))
        self._ends.append(
            self.run(one.operation, one.bytes, ranks, ready_s, queue=one.group, in_graph=in_graph)
        )

    def run(
        self,
        operation: str,
        nbytes: int,
        ranks: Sequence[int],
        ready_s: float,
        *,
        queue: str | None,
        in_graph: bool = False,
    ) -> float:
        """When an operation among global ranks ends.

        queue  those of one run one after the other; None: at once, as messages do
        """
        chip, cores = self.target.chip, self.target.cores
        seconds = seconds_on(chip, cores, operation, nbytes, ranks, in_graph)
        if queue is not None:
            ready_s = max(ready_s, self._free_s.get(queue, 0.0))
            self._free_s[queue] = ready_s + seconds
        self.count += 1
        self.active_s += seconds
        self.end_s = max(self.end_s, ready_s + seconds)
        return ready_s + seconds

    def end_of(self, number: int) -> float:
        """When a functional collective ends; -1 is the latest."""
        return self._ends[number] if self._ends else 0.0
