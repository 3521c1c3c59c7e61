"""Numbers that a script read, as curves: one line of text for each line of the script."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["curves", "drawn", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 60) -> str:
    """A bar for each value, or for each mean of several; x for what is not finite."""
    size = -(-len(values) // width) if values else 1
    means = [
        sum(part) / len(part)
        for part in (values[i : i + size] for i in range(0, len(values), size))
    ]
    finite = [value for value in means if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        _BARS[round((value - low) * scale)] if math.isfinite(value) else "x" for value in means
    )


def _by_line(values: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The numbers of each line of the script that read at least two."""
    found: dict[str, list[float]] = {}
    for row in values:
        found.setdefault(row["where"], []).append(row["value"])
    return {where: numbers for where, numbers in found.items() if len(numbers) > 1}


def curves(values: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line of text for each line of the script: first number, curve and last number."""
    return [
        f"{where}: {found[0]:.6g} {sparkline(found)} {found[-1]:.6g} ({len(found):,} numbers)"
        for where, found in _by_line(values).items()
    ]


def drawn(values: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """For a page: what each line read, and the points of a polyline 900 by 140."""
    out = []
    for where, found in _by_line(values).items():
        finite = [value for value in found if math.isfinite(value)]
        low, high = min(finite, default=0.0), max(finite, default=0.0)
        scale = 115 / (high - low) if high > low else 0.0
        points = " ".join(
            f"{900 * i / (len(found) - 1):.1f},{128 - (value - low) * scale:.1f}"
            for i, value in enumerate(found)
            if math.isfinite(value)
        )
        name = f"{where}: {found[0]:.6g} to {found[-1]:.6g}, between {low:.6g} and {high:.6g}"
        out.append((name, points))
    return out
