"""The emulated HBM of a logical core, in bytes."""

from typing import Any

import torch

from .. import _C
from .device import Device, _lazy_init, index_of

__all__ = [
    "empty_cache",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
]


def _stats(device: Device) -> dict[str, int]:
    _lazy_init()
    stats: dict[str, int] = _C.memory_stats(index_of(device))
    return stats


def memory_allocated(device: Device = None) -> int:
    """Bytes in tensors and workspaces now, in blocks of the pool."""
    return _stats(device)["allocated_bytes"]


def max_memory_allocated(device: Device = None) -> int:
    """Peak of `memory_allocated` since the start or `reset_peak_memory_stats`."""
    return _stats(device)["allocated_bytes_peak"]


def memory_reserved(device: Device = None) -> int:
    """Bytes the pool holds, allocated or cached."""
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


def reset_peak_memory_stats(device: Device = None) -> None:
    """Set the peaks to the present values."""
    _lazy_init()
    _C.reset_peak(index_of(device))


def reset_accumulated_memory_stats(device: Device = None) -> None:
    """Set the totals and counts to zero."""
    _lazy_init()
    _C.reset_accumulated(index_of(device))


def empty_cache() -> None:
    """Return cached memory of all devices to the host."""
    _C.empty_cache()


def memory_summary(device: Device = None, abbreviated: bool = False) -> str:
    """A table of the pool's state; with the largest live blocks unless `abbreviated`."""
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
