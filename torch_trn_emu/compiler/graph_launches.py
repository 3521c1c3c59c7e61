"""Compiled graphs that have run: their rows in the ledger, and what fusion has saved so far.

A graph with other sizes is another row. The prices of the last MOST_WHOLE stay as they are; of the
others only what `summary` says of them is kept, and a trace has no engine lanes for them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from threading import Lock

from .. import _C
from ..chip import Chip
from ..isa import Program
from ..pricing import NOT_MODELLED, Price, remember
from ..settings import settings
from ..timing import Span
from .graph_price import GraphPrice, Saving, target_of_process

__all__ = ["GraphSaving", "launch_row", "summary", "uncounted"]

_lock = Lock()
_numbers = count()
_launched: list["GraphPrice | GraphSaving"] = []
_names: list[tuple[str, int]] = []  # of the same: the name in the ledger and the core
MOST_WHOLE = 256  # (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSaving:
    """One compiled graph on one core: how often it ran, and one launch against its operators'."""

    name: str
    device: int
    launches: int
    regions: int
    windows: int
    spilled_bytes: int
    saving: Saving
    note: str = ""  # why its time is not modelled, or that of some operators

    def __str__(self) -> str:
        s = self.saving
        if self.note and not self.regions:
            return f"{self.name}: not modelled: {self.note}"
        return (
            f"{self.name}: {s.launches[0]} operators in {self.regions} regions, "
            f"{s.launches[1]} launch; "
            f"HBM {s.hbm_bytes[0] / 1e6:.1f} -> {s.hbm_bytes[1] / 1e6:.1f} MB, "
            f"core {s.device_s[0] * 1e6:.1f} -> {s.device_s[1] * 1e6:.1f} us, "
            f"launches {s.launch_s[0] * 1e6:.1f} -> {s.launch_s[1] * 1e6:.1f} us"
            + (f"; not modelled in part: {self.note}" if self.note else "")
        )


def launch_row(priced: GraphPrice, device: int) -> object:
    """A row of its own in the ledger of a core, where each launch of the graph is counted."""
    with _lock:
        number = next(_numbers)
        name = f"trn::{priced.name.replace(' ', '_')}"
        _names.append((name, device))
        _launched.append(priced)
        if number >= MOST_WHOLE:
            _launched[number - MOST_WHOLE] = _saving(number - MOST_WHOLE, 0)
    return _C.add_graph_row(
        device=device,
        name=name,
        signature=f"({len(priced.regions)} regions)",
        key=(1 << 63) + number,
        device_ns=round(priced.price.seconds * 1e9),
        dispatch_ns=round(priced.launches * settings().chip.launch.graph_launch_s * 1e9),
        price_row=remember(priced.price, partial(_programs, number), partial(_lanes, number)),
        blocks=priced.price.blocks,
    )


@contextmanager
def uncounted() -> Iterator[None]:
    """Operators that run meanwhile are not the user's launches."""
    previous = _C.pause_ledger(True)
    try:
        yield
    finally:
        _C.pause_ledger(previous)


def _programs(number: int) -> tuple[Program, ...]:
    priced = _launched[number]
    return priced.programs(settings().chip) if isinstance(priced, GraphPrice) else ()


def _lanes(number: int, chip: Chip, limit: int) -> list[dict[str, tuple[Span, ...]]]:
    priced = _launched[number]
    return priced.lanes(chip, limit) if isinstance(priced, GraphPrice) else []


def _saving(number: int, launches: int) -> GraphSaving:
    (name, device), found = _names[number], _launched[number]
    if isinstance(found, GraphSaving):
        return replace(found, launches=launches)
    return GraphSaving(
        name=name,
        device=device,
        launches=launches,
        regions=len(found.regions),
        windows=found.windows,
        spilled_bytes=found.spilled_bytes,
        saving=found.saving(target_of_process()),
        note=_unmodelled(found.price),
    )


def _unmodelled(price: Price) -> str:
    """Why the graph's time, or that of operators in it, is not modelled."""
    return price.note if price.status == NOT_MODELLED else price.note.partition("; ")[2]


def summary() -> list[GraphSaving]:
    """A row for each compiled graph that has run, in the order of its first launch.

    `saving` compares one launch of the graph with its operators launched one by one (simulated
    seconds; *inferred* as all prices of graphs). `launches` counts since `reset_counters`.
    """
    with _lock:
        known = list(_names)
    counts = {
        (row[0], device): row[2]
        for device in {device for _, device in known}
        for row in _C.launches(device)
    }
    return [_saving(number, counts.get(key, 0)) for number, key in enumerate(known)]
