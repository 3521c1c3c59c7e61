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


def compared(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["verdict"] != "NO_SAMPLE"]


def unexplained(rows: Iterable[Row]) -> list[Row]:
    """Crashes, and differences without a reason."""
    return [
        row
        for row in rows
        if row["verdict"] not in ("EXACT", "NO_SAMPLE")
        and (row["verdict"] == "CRASH" or reason_for(row["case"], row["verdict"]) is None)
    ]


def share(rows: Iterable[Row]) -> float:
    """Of the compared cases, those that are bit-equal or within a bound that has a reason."""
    counted = compared(rows)
    explained = {id(row) for row in counted} - {id(row) for row in unexplained(counted)}
    good = [row for row in counted if row["verdict"] in AGREE and id(row) in explained]
    return len(good) / max(1, len(counted))


def summarise(rows: list[Row]) -> dict[str, Any]:
    import torch

    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["case"].split("/")[0], Counter())[row["verdict"]] += 1
    remaining = [
        {**row, "reason": reason_for(row["case"], row["verdict"])}
        for row in compared(rows)
        if row["verdict"] != "EXACT"
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
