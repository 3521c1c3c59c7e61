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

    The names, units and formulas are those of `counters.COUNTERS`; times are simulated seconds.
    `total_time` is that of the programs, one after the other. `torch.trn.collectives()` has
    collectives by operation and size.
    """
    from ..counters import Clock, clocked, combine, derive

    chosen = settings()
    priced = _priced(device)
    totals = combine((price.totals, calls) for _, calls, price in priced)
    times = [_C.core_times(index) for index in _indices(device)]
    dispatch, busy, idle = (sum(t[k] for t in times) * 1e-9 for k in range(3))
    collectives = [row for index in _indices(device) for row in _C.collective_rows(index)]
    count, active, exposed = (sum(row[k] for row in collectives) for k in (1, 2, 3))
    clock = Clock(
        launches=sum(calls for _, calls, _ in priced),
        dispatch_s=dispatch,
        busy_s=busy,
        idle_s=idle,
        collectives=count,
        collective_s=active * 1e-9,
        exposed_s=exposed * 1e-9,
    )
    return derive(totals | clocked(clock), chosen.chip, chosen.lnc)


def op_report(device: Device = None) -> "list[OpRow]":
    """Return a row for each operator and kind of price, longest first, without free operators."""
    from ..pricing import report_rows

    return report_rows(_priced(device))


def reset_counters(device: Device = None) -> None:
    """Synchronize, then reset launches, counters and times; the clock is not reset."""
    for index in _indices(device):
        _C.synchronize(index)
        _C.reset_launches(index)


reset_op_counts = reset_counters
