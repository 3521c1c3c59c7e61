"""Collectives and messages that a script calls by `torch.distributed`, in an estimate.

Each is one operator of the namespace `c10d`, priced as csrc/distributed prices it: to add one, add
a row. Nothing is sent: its tensors keep what they hold. What waits for it is what waits in a run:
`wait()`, and on streams beside the default one whatever reads its results. When the other ranks
arrive is not known: they are taken to arrive with this one. Checked on torch 2.13.0.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.distributed import get_process_group_ranks
from torch.distributed.distributed_c10d import Work

from ..settings import DEVICE_TYPE
from ..torch_private import OpOverload, compiled_c10d
from .exchanges import Exchanged
from .meta_results import tensors_in

__all__ = ["GroupCall", "Promise", "Promises", "call_of_group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """An operator of `c10d`, as csrc/distributed has it."""

    operation: str
    buffer: str  # the argument whose bytes it is priced by
    by_ranks: bool = False  # a piece of the buffer, which has as many as there are ranks
    results: str = ""  # the argument that it writes
    gathered: str = ""  # the argument that holds what the results are copies of, by rank
    peer: str = ""  # of messages: the argument with the other rank


_ROWS = MappingProxyType(
    {
        "allreduce_": _Row(operation="all_reduce", buffer="tensors", results="tensors"),
        "allreduce_coalesced_": _Row(operation="all_reduce", buffer="tensors", results="tensors"),
        "broadcast_": _Row(operation="broadcast", buffer="tensors", results="tensors"),
        "reduce_": _Row(operation="reduce", buffer="tensors", results="tensors"),
        "allgather_": _Row(
            operation="all_gather", buffer="output_tensors", results="output_tensors",
            gathered="input_tensors",
        ),
        "allgather_coalesced_": _Row(
            operation="all_gather_coalesced", buffer="input_list", by_ranks=True,
            results="output_lists",
        ),
        "_allgather_base_": _Row(
            operation="all_gather_into_tensor", buffer="output_tensor", results="output_tensor",
            gathered="input_tensor",
        ),
        "allgather_into_tensor_coalesced_": _Row(
            operation="all_gather_into_tensor", buffer="outputs", results="outputs",
            gathered="inputs",
        ),
        "gather_": _Row(
            operation="gather", buffer="input_tensors", by_ranks=True, results="output_tensors",
            gathered="input_tensors",
        ),
        "scatter_": _Row(
            operation="scatter", buffer="output_tensors", by_ranks=True, results="output_tensors"
        ),
        "reduce_scatter_": _Row(
            operation="reduce_scatter", buffer="input_tensors", results="output_tensors"
        ),
        "_reduce_scatter_base_": _Row(
            operation="reduce_scatter_tensor", buffer="input_tensor", results="output_tensor"
        ),
        "reduce_scatter_tensor_coalesced_": _Row(
            operation="reduce_scatter_tensor", buffer="inputs", results="outputs"
        ),
        "alltoall_base_": _Row(
            operation="all_to_all_single", buffer="input", results="output", gathered="input"
        ),
        "alltoall_": _Row(
            operation="all_to_all", buffer="input_tensors", results="output_tensors"
        ),
        "barrier": _Row(operation="barrier", buffer=""),
        "send": _Row(operation="send", buffer="tensors", peer="dst"),
        "recv_": _Row(operation="send", buffer="tensors", results="tensors", peer="src"),
        # The nearest rank stands for the one that is not known (chosen).
        "recv_any_source_": _Row(
            operation="send", buffer="tensors", results="tensors", peer="any"
        ),
    }
)  # fmt: skip
_BARRIER_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCall:
    """A collective or message without its data."""

    operation: str
    bytes: int  # the full buffer
    ranks: Sequence[int]  # of the world
    queue: str | None  # what it runs in turn with; None: a message
    returned: Any  # what the operator returns beside its work
    results: list[torch.Tensor]
    gathered: list[torch.Tensor]  # what the results are copies of, if the ranks give the same


def call_of_group(func: OpOverload, args: Any, kwargs: Any) -> GroupCall | None:
    """None for an operator that moves nothing."""
    row = _ROWS.get(func._opname)
    if row is None:
        return None
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    group = compiled_c10d.ProcessGroup.unbox(named["process_group"])
    ranks = get_process_group_ranks(group)
    tensors = tensors_in(named.get(row.buffer))
    nbytes = sum(t.numel() * t.element_size() for t in tensors) if row.buffer else _BARRIER_BYTES
    operation = row.operation
    if operation == "all_reduce" and len(tensors) > 1:
        operation = "all_reduce_coalesced"
    if row.peer:
        mine = group.rank()
        other = named[row.peer] if row.peer in named else (mine + 1) % group.size()
        ranks = sorted((ranks[mine], ranks[other]))
    returned = named.get(row.results)
    return GroupCall(
        operation=operation,
        bytes=nbytes * (group.size() if row.by_ranks else 1),
        ranks=ranks,
        queue=None if row.peer else group.group_name,
        returned=returned,
        results=tensors_in(returned),
        gathered=tensors_in(named.get(row.gathered)),
    )


class Promise(Work):
    """The work of an operation that takes its time and has sent nothing."""

    def __init__(
        self,
        results: list[torch.Tensor],
        wait: Callable[["Promise"], None],
        give_future: Callable[[], None],
    ) -> None:
        super().__init__()
        self._results, self._wait, self._give_future = results, wait, give_future

    def wait(self, timeout: Any = None) -> bool:
        self._wait(self)
        return True

    def synchronize(self) -> None:
        self._wait(self)

    def get_future(self) -> Any:
        """Complete: what reads the results waits for their end."""
        self._give_future()
        devices = {t.device for t in self._results if t.device.type == DEVICE_TYPE}
        future: Any = torch.futures.Future(devices=sorted(devices, key=str))
        future.set_result(self._results)
        return future

    def result(self) -> list[torch.Tensor]:
        return self._results

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True


class Promises:
    """When the results of calls are there that nothing has waited for yet."""

    def __init__(self, exchanged: Exchanged) -> None:
        self._exchanged = exchanged
        self._ends: dict[int, tuple[weakref.ref[Any], float]] = {}  # by storage
        self._futures_end_s = 0.0
        self._works: dict[int, Promise] = {}  # torch forgets what a work without owner overrides

    def make(self, call: GroupCall, ready_s: float, wait: Callable[[float], None]) -> Any:
        """The work of a call issued at `ready_s`, as operators return it.

        wait  is told the end when the script waits
        """
        end = self._exchanged.run(call.operation, call.bytes, call.ranks, ready_s, queue=call.queue)
        for tensor in call.results:
            storage = tensor.untyped_storage()
            self._ends[storage._cdata] = weakref.ref(storage), end

        def done(work: Promise) -> None:
            self._works.pop(id(work), None)
            wait(end)

        def future() -> None:
            self._futures_end_s = max(self._futures_end_s, end)

        return self._keep(Promise(call.results, done, future))

    def kept(self, call: GroupCall) -> Any:
        """The work of a call that takes no time."""
        return self._keep(Promise(call.results, lambda _: None, lambda: None))

    def _keep(self, work: Promise) -> Any:
        self._works[id(work)] = work
        return work.boxed()

    def take_futures_end_s(self) -> float:
        """When all futures that were given out are complete; those given from now on count anew."""
        end, self._futures_end_s = self._futures_end_s, 0.0
        return end

    def end_s(self, tensors: Iterable[torch.Tensor], now_s: float) -> float:
        """When all of them are there, from now on."""
        if not self._ends:
            return now_s
        kept = ((key, ref, end) for key, (ref, end) in self._ends.items())
        self._ends = {k: (ref, end) for k, ref, end in kept if end > now_s and ref() is not None}
        keys = [t.untyped_storage()._cdata for t in tensors if t.layout is torch.strided]
        return max([now_s, *(self._ends[key][1] for key in keys if key in self._ends)])
