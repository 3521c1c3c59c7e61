"""The range of a predicted time: which regime it belongs to, and what is known of that regime.

Every output asks `range_of`: `estimate`, summaries, reports, pages, JSON, traces, events. A regime
is read from counters, so that a call, a compiled graph and a whole run are classified alike. The
figures are those of chip/calibration.py.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .chip import Chip
from .chip.calibration import MIXED, RANGES, Range

__all__ = [
    "SMALL_S",
    "Range",
    "as_data",
    "range_of",
    "regime_of",
    "regime_of_collective",
    "said",
]

SMALL_S = (
    60e-6  # a launch's start, pipelines to fill and semaphores are most of such a time (chosen)
)
FEW_ROWS = 64.0  # products of fewer flops a byte read use a weight for a few rows only (chosen)
# From here on published sweeps of all_reduce take longer than their latency (chosen).
LARGE_BYTES = 8 << 20
_ENGINES = ("tensor", "vector", "scalar", "gpsimd")


def regime_of(totals: Mapping[str, float], *, launches: int, whole: bool) -> str:
    """The regime of what `totals` count.

    launches  how many it takes on the device
    whole     a compiled graph, or several operators
    """
    busy = {e: totals.get(f"{e}_engine_active_time", 0.0) for e in _ENGINES}
    moving = totals.get("dma_active_time", 0.0)
    busiest = max(busy, key=lambda engine: busy[engine])
    if whole:
        read = totals.get("hbm_read_bytes", 0.0)
        flops = totals.get("model_flops", 0.0)
        few = 0 < flops <= FEW_ROWS * read and moving >= busy["tensor"]
        return "decode" if few else "whole graph"
    if totals.get("total_time", 0.0) <= SMALL_S * max(1, launches):
        return "small"
    if moving >= busy[busiest]:
        return "stream"
    return "large product" if busiest == "tensor" else "reduction"


def regime_of_collective(size_bytes: int) -> str:
    """The regime of an exchange between ranks, by its full buffer."""
    return "large collective" if size_bytes >= LARGE_BYTES else "small collective"


def range_of(regime: str) -> Range:
    """What measurements of this regime say of a prediction."""
    return RANGES.get(regime, RANGES[MIXED])


def as_data(found: Range, chip: Chip) -> dict[str, Any]:
    """The range for JSON; `text` is the sentence."""
    return asdict(found) | {"basis": found.basis(chip), "text": said(found, chip)}


def said(found: Range, chip: Chip) -> str:
    """The range as a sentence, with what it rests on for this chip."""
    return f"{found}; {found.basis(chip)}"
