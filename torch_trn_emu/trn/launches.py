"""What ran on the emulated cores: launches by operator and signature, their time and counters."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import _C
from ..settings import settings
from .device import Device, device_count, index_of

if TYPE_CHECKING:
    from ..pricing import OpRow, Price

__all__ = [
    "LaunchRow",
    "counters",
    "launches",
    "op_counts",
    "op_report",
    "reset_counters",
    "reset_op_counts",
]


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
    """Rows since the start or `reset_counters`, most launched first; None means all devices."""
    rows = [LaunchRow(*row[:4]) for index in _indices(device) for row in _C.launches(index)]
    return sorted(rows, key=lambda row: (-row.launches, row.op, row.signature))


def op_counts(device: Device = None) -> dict[str, int]:
    """Launches by operator, for example {"aten::mm": 12}, most launched first."""
    counts: Counter[str] = Counter()
    for row in launches(device):
        counts[row.op] += row.launches
    return dict(counts.most_common())


def _priced(device: Device) -> list[tuple[str, int, "Price"]]:
    """(operator, launches, price) of each signature that was priced, in a fixed order."""
    from ..pricing import prices

    raw = [row for index in _indices(device) for row in _C.launches(index)]
    raw.sort(key=lambda row: (row[0], row[1], row[3], row[2]))
    found = prices(row[4] for row in raw)
    return [
        (row[0], row[2], price)
        for row, price in zip(raw, found, strict=True)
        if price is not None and not price.free
    ]


def counters(device: Device = None) -> dict[str, float]:
    """The hardware counters since the start or `reset_counters`; None adds up all devices.

    The names, units and formulas of `counters.COUNTERS`, and four of ours: `launch_count`,
    `host_dispatch_time`, `core_busy_time` and `core_idle_time` (the core waited for the host), in
    simulated seconds. `total_time` is that of the programs, one after the other.

    Of collectives: `cc_op_count`, `cc_op_active_time` (from the last rank's arrival to the end) and
    `cc_exposed_time` (of these, a stream waited). `torch.trn.collectives()` has them by size.
    """
    from ..counters import combine, derive

    chosen = settings()
    priced = _priced(device)
    totals = combine((price.totals, calls) for _, calls, price in priced)
    times = [_C.core_times(index) for index in _indices(device)]
    dispatch, busy, idle = (sum(t[k] for t in times) * 1e-9 for k in range(3))
    collectives = [_C.collective_times(index) for index in _indices(device)]
    count, active, exposed = (sum(t[k] for t in collectives) for k in range(3))
    return derive(totals, chosen.chip, chosen.lnc) | {
        "launch_count": float(sum(calls for _, calls, _ in priced)),
        "host_dispatch_time": dispatch,
        "core_busy_time": busy,
        "core_idle_time": idle,
        "cc_op_count": float(count),
        "cc_op_active_time": active * 1e-9,
        "cc_exposed_time": exposed * 1e-9,
    }


def op_report(device: Device = None) -> "list[OpRow]":
    """A row for each operator and way of pricing it, longest first; free operators are left out."""
    from ..pricing import report_rows

    return report_rows(_priced(device))


def reset_counters(device: Device = None) -> None:
    """Wait for the cores, then forget launches, counters and times so far; the clock goes on."""
    for index in _indices(device):
        _C.synchronize(index)
        _C.reset_launches(index)


reset_op_counts = reset_counters
