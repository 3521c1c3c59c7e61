"""torch.distributed on trn: the backend `trn` of process groups. Checked on torch 2.13.0.

The backend is C++ (csrc/distributed). Here it is registered, and what torch decides by the names of
the backends that it knows is decided for this one too.
"""

import atexit
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch

from .. import _C
from ..collectives import price, priced
from ..errors import Unsupported
from ..settings import DEVICE_TYPE
from .dtensor import install_dtensor
from .sparse_reduction import install_sparse_reduction

__all__ = ["BACKENDS", "bound", "collectives", "install_backend", "place_in_world"]

# What init_process_group calls the backend; the first is the default.
BACKENDS = ("neuron", "xla") if DEVICE_TYPE == "neuron" else ("trn",)

# The classes Options and ProcessGroupTrn, once they are there.
bound: Any = ModuleType(f"{__name__}.bound")


_place = 0, 1


def place_in_world() -> tuple[int, int]:
    """The rank of this process and the size of the largest group that it was in; 0 and 1: none."""
    return _place


def install_backend(transport: str) -> None:
    """Register the backend with torch.distributed, if this torch has that."""
    if not torch.distributed.is_available():
        return
    _C.bind_backend(bound)
    _C.set_transport(transport)
    _C.set_backend_name(BACKENDS[0])
    _C.set_gloo_maker(_gloo)
    _C.set_collective_pricer(price)
    install_dtensor()
    bound.sparse = install_sparse_reduction()
    for name in BACKENDS:
        torch.distributed.Backend.register_backend(
            name, _create, extended_api=True, devices=[DEVICE_TYPE]
        )
    if torch.distributed.rpc.is_available():
        from ..torch_private import rpc

        rpc.look_at_tensors(_refuse_to_send)
    atexit.register(_say_why_this_rank_ends)


def _create(given: Any, options: Any) -> Any:
    """The backend of a new group: called by torch on each member."""
    global _place
    _make_default(sys._getframe(1).f_locals)
    if len(given.global_ranks_in_group or range(given.group_size)) > _place[1]:
        _place = given.group_rank, given.group_size
    mine = copy.copy(options) if isinstance(options, bound.Options) else bound.Options()
    mine._timeout = _as_timedelta(given.timeout)
    mine.group_name = given.group_id
    mine.global_ranks_in_group = list(given.global_ranks_in_group)
    return bound.ProcessGroupTrn(given.store, given.group_rank, given.group_size, mine)


def _as_timedelta(timeout: Any) -> timedelta:
    return timeout if isinstance(timeout, timedelta) else timedelta(seconds=float(timeout))


def _make_default(caller: dict[str, Any]) -> None:
    """Make this backend the default of the group that torch is building.

    For a group whose backend was not named, or named for several devices, torch takes NCCL if it is
    there and gloo otherwise, though no gloo was made: DistributedDataParallel then finds none.
    """
    group, asked = caller.get("pg"), str(caller.get("backend"))
    if isinstance(group, torch.distributed.ProcessGroup) and (
        asked == torch.distributed.Backend.UNDEFINED or ":" in asked
    ):
        group._set_default_backend(torch.distributed.ProcessGroup.BackendType.CUSTOM)


def collectives(device: Any = None) -> list[dict[str, Any]]:
    """What collectives the device has taken part in since the last reset: a row for each size.

    count, active_ns (from the last rank's arrival to the end), exposed_ns (of these, a stream
    waited and the core had nothing else to do), algorithm_bandwidth and bus_bandwidth in bytes/s.
    The times are simulated.
    """
    from .device import index_of

    rows = []
    for number, count, active_ns, exposed_ns in _C.collective_rows(index_of(device)):
        if number < 0:  # without a price, and so without a time
            continue
        row = priced(number)
        rows.append(
            asdict(row)
            | {
                "count": count,
                "active_ns": active_ns,
                "exposed_ns": exposed_ns,
                "algorithm_bandwidth": row.algorithm_bandwidth,
                "bus_bandwidth": row.bus_bandwidth,
            }
        )
    return rows


def _refuse_to_send(tensor: torch.Tensor) -> None:
    if not tensor.is_cpu:
        raise Unsupported(
            "torch.distributed.rpc carries tensors of the CPU only: send tensor.cpu() and move "
            "what arrives to the device, or use the collectives and messages of torch.distributed."
        )


def _gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    return torch.distributed.ProcessGroupGloo(store, rank, size, timeout)


def _say_why_this_rank_ends() -> None:
    """Tell ranks that wait for this one which error ended it."""
    error = getattr(sys, "last_value", None)
    _C.end_groups(_reason(error))


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "has exited (its script finished, or called sys.exit)"
    lines: Sequence[str] = str(error).strip().splitlines() or [""]
    return f"ended with {type(error).__name__}: {lines[0]}"
