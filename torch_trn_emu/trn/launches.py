"""What ran on the emulated cores: launches by operator and signature."""

from collections import Counter
from dataclasses import dataclass

from .. import _C
from .device import Device, device_count, index_of

__all__ = ["LaunchRow", "launches", "op_counts", "reset_op_counts"]


@dataclass(frozen=True, slots=True)
class LaunchRow:
    """The launches of one operator with one signature (dtypes, shapes, scalar attributes)."""

    op: str
    signature: str
    launches: int
    device_ns: int  # of one launch, simulated


def _indices(device: Device) -> list[int]:
    return list(range(device_count())) if device is None else [index_of(device)]


def launches(device: Device = None) -> list[LaunchRow]:
    """Rows since the start or `reset_op_counts`, most launched first; None means all devices."""
    rows = [LaunchRow(*row) for index in _indices(device) for row in _C.launches(index)]
    return sorted(rows, key=lambda row: (-row.launches, row.op, row.signature))


def op_counts(device: Device = None) -> dict[str, int]:
    """Launches by operator, for example {"aten::mm": 12}, most launched first."""
    counts: Counter[str] = Counter()
    for row in launches(device):
        counts[row.op] += row.launches
    return dict(counts.most_common())


def reset_op_counts(device: Device = None) -> None:
    """Forget the launches so far."""
    for index in _indices(device):
        _C.reset_launches(index)
