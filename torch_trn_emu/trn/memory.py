"""The emulated HBM of a logical core, in bytes."""

import os
import pickle
from typing import Any
from warnings import warn

import torch

from .. import _C
from ..settings import DEVICE_TYPE
from .device import Device, _lazy_init, index_of

__all__ = [
    "device_memory_used",
    "empty_cache",
    "get_allocator_backend",
    "get_per_process_memory_fraction",
    "list_gpu_processes",
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "memory_stats_as_nested_dict",
    "memory_summary",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
    "reset_peak_memory_stats",
    "set_per_process_memory_fraction",
]


def _stats(device: Device) -> dict[str, int]:
    _lazy_init()
    stats: dict[str, int] = _C.memory_stats(index_of(device))
    return stats


def memory_allocated(device: Device = None) -> int:
    """Return the bytes currently allocated for tensors and workspaces."""
    return _stats(device)["allocated_bytes"]


def max_memory_allocated(device: Device = None) -> int:
    """Peak of `memory_allocated` since the start or `reset_peak_memory_stats`."""
    return _stats(device)["allocated_bytes_peak"]


def memory_reserved(device: Device = None) -> int:
    """Return the bytes held by the pool, allocated or cached."""
    return _stats(device)["reserved_bytes"]


def max_memory_reserved(device: Device = None) -> int:
    """Peak of `memory_reserved`."""
    return _stats(device)["reserved_bytes_peak"]


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """(free, total) bytes of the core's HBM."""
    stats = _stats(device)
    return stats["capacity_bytes"] - stats["allocated_bytes"], stats["capacity_bytes"]


def memory_stats(device: Device = None) -> dict[str, Any]:
    """Statistics under the names of `torch.cuda.memory_stats`; parts of the pool stay 0."""
    _lazy_init()
    return torch.accelerator.memory_stats(index_of(device))


def memory_stats_as_nested_dict(device: Device = None) -> dict[str, Any]:
    """`memory_stats` as a dictionary of dictionaries."""
    nested: dict[str, Any] = {}
    for name, value in memory_stats(device).items():
        *path, last = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def memory_snapshot(
    mempool_id: tuple[int, int] | None = None, include_traces: bool = True
) -> list[dict[str, Any]]:
    """What the pools of all cores in use hold, a dictionary for each segment, as torch.cuda gives.

    The total sizes add up to `memory_reserved`, the allocated ones to `memory_allocated`. There are
    no traces. Raises ValueError for a memory pool: there is one for each core.
    """
    if mempool_id is not None:
        raise ValueError(
            f"torch.trn.memory_snapshot: no memory pool {mempool_id!r}. trn has one pool for each "
            "core: leave mempool_id out."
        )
    used = [index for index in range(_C.device_count()) if _C.hbm_in_use(index)]
    return [_segment(index, *row) for index in used for row in _C.memory_segments(index)]


def _segment(device: int, address: int, size: int, block: int, live: list[bool]) -> dict[str, Any]:
    allocated = block * sum(live)
    blocks: list[dict[str, Any]] = [
        {
            "address": address + i * block,
            "size": block,
            "requested_size": block,
            "state": "active_allocated" if alive else "inactive",
            "frames": [],
        }
        for i, alive in enumerate(live)
    ]
    cached: dict[str, Any] = {"address": address, "size": size, "frames": []}
    return {
        "device": device,
        "address": address,
        "total_size": size,
        "allocated_size": allocated,
        "active_size": allocated,
        "requested_size": allocated,
        "stream": 0,
        "segment_type": "large" if len(live) < 2 else "small",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks or [cached | {"requested_size": 0, "state": "inactive"}],
    }


def set_per_process_memory_fraction(fraction: float, device: Device = None) -> None:
    """Let this process allocate at most this fraction of the core's HBM; more is out of memory.

    Raises TypeError for what is no float and ValueError outside of 0 to 1.
    """
    _lazy_init()
    if not isinstance(fraction, float):
        raise TypeError("Invalid type for fraction argument, must be `float`")
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
    index = index_of(device)
    _C.set_memory_limit(index, int(fraction * _stats(index)["capacity_bytes"]))


def get_per_process_memory_fraction(device: Device = None) -> float:
    """The fraction of the core's HBM that this process may allocate."""
    _lazy_init()
    index = index_of(device)
    return float(_C.memory_limit(index) / _stats(index)["capacity_bytes"])


def device_memory_used(device: Device = None) -> int:
    """Bytes of the core's HBM in use: what this process reserves, as nothing else runs there."""
    return memory_reserved(device)


def list_gpu_processes(device: Device = None) -> str:
    """The processes on the core and their memory: this one, as each process emulates its own."""
    index = index_of(device)
    mib = memory_reserved(index) / (1 << 20)
    return f"{DEVICE_TYPE}:{index}\nprocess {os.getpid():>10d} uses {mib:>12.3f} MB HBM"


def get_allocator_backend() -> str:
    """The pool is this package's own: "native"."""
    return "native"


def reset_peak_memory_stats(device: Device = None) -> None:
    """Reset the peaks to the current values."""
    _lazy_init()
    _C.reset_peak(index_of(device))


def reset_accumulated_memory_stats(device: Device = None) -> None:
    """Set the totals and counts to zero."""
    _lazy_init()
    _C.reset_accumulated(index_of(device))


def _record_memory_history(*args: Any, **kwargs: Any) -> None:
    """Accepted: snapshots have no history, which `torch_trn_emu.profile` records instead."""
    global _told
    if not _told and (args[:1] or ("all",))[0] is not None:
        _told = True
        warn(
            f"torch.{DEVICE_TYPE} keeps no history of allocations, so snapshots show what is "
            "allocated, not who did it. torch_trn_emu.profile() shows memory over time.",
            stacklevel=3,
        )


_told = False


def _snapshot(device: Device = None, augment_with_fx_traces: bool = False) -> dict[str, Any]:
    """What `_dump_snapshot` stores: the segments, and no traces."""
    return {
        "segments": memory_snapshot(),
        "device_traces": [[] for _ in range(_C.device_count())],
        "allocator_settings": {},
        "external_annotations": [],
    }


def _dump_snapshot(
    filename: str = "dump_snapshot.pickle", augment_with_fx_traces: bool = False
) -> None:
    """Store a snapshot in the form that PyTorch's memory viewer reads."""
    with open(filename, "wb") as file:
        pickle.dump(_snapshot(), file)


# Older names of torch.cuda.
memory_cached, max_memory_cached = memory_reserved, max_memory_reserved
reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats


def empty_cache() -> None:
    """Return cached memory of all devices to the host."""
    _C.empty_cache()


def memory_summary(device: Device = None, abbreviated: bool = False) -> str:
    """Return a table of the pool's state, with the largest live blocks unless `abbreviated`."""
    index, stats = index_of(device), _stats(device)
    lines = [
        f"HBM of trn:{index}, {_bytes(stats['capacity_bytes'])}",
        f"{'':14}{'now':>12}{'peak':>12}",
        f"{'allocated':14}{_bytes(stats['allocated_bytes']):>12}"
        f"{_bytes(stats['allocated_bytes_peak']):>12}",
        f"{'reserved':14}{_bytes(stats['reserved_bytes']):>12}"
        f"{_bytes(stats['reserved_bytes_peak']):>12}",
        f"{'blocks':14}{stats['blocks']:>12}{stats['blocks_peak']:>12}",
        f"allocations {stats['allocations']}, frees {stats['frees']}, "
        f"out of memory {stats['ooms']}, cache flushes {stats['retries']}",
    ]
    if not abbreviated and (rows := _C.live_blocks(index, 8)):
        lines.append("largest live blocks")
        lines += [f"  {count:>6} x {_bytes(size)}" for size, count in rows]
    return "\n".join(lines)


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
