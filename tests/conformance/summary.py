"""What a walk found, small enough to be kept: counts, and the cases that are not bit-equal."""

import json
import platform
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reasons import reason_for

Row = dict[str, Any]
AGREE = ("EXACT", "BOUND")
REFUSED = ("UNCOMPILED", "ERROR_DIFFERS")


def compared(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["verdict"] != "NO_SAMPLE"]


def explained(row: Row) -> bool:
    """Bit-equal, or for a known reason within the reason's bound or allowed to leave it."""
    reason = reason_for(row["case"])
    if row["verdict"] == "EXACT":
        return True
    if reason is None:
        return False
    return (
        row["verdict"] == "BOUND"
        or (row["verdict"] == "DIFFERS" and reason.beyond)
        or (row["verdict"] in REFUSED and reason.refused)
    )


def listed(row: Row) -> bool:
    """What is shown by itself: all but cases within the bound of a reason for many."""
    reason = reason_for(row["case"])
    within = row["verdict"] == "BOUND" and reason is not None and not reason.each
    return row["verdict"] != "EXACT" and not within


def share(rows: Iterable[Row]) -> float:
    """Of the compared cases, those that are bit-equal or within a bound that has a reason."""
    counted = compared(rows)
    agree = [row for row in counted if row["verdict"] in AGREE and explained(row)]
    return len(agree) / max(1, len(counted))


def summarise(rows: list[Row]) -> dict[str, Any]:
    import torch

    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["case"].split("/")[0], Counter())[row["verdict"]] += 1
    remaining = [
        {**row, "reason": reason_for(row["case"]).text if explained(row) else None}
        for row in compared(rows)
        if listed(row)
    ]
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "samples": sum(row["samples"] for row in rows),
        "share": share(rows),
        "counts": {suite: dict(sorted(found.items())) for suite, found in counts.items()},
        "remaining": remaining,
    }


def write(rows: list[Row], path: Path) -> None:
    path.write_text(json.dumps(summarise(rows), indent=1) + "\n")
