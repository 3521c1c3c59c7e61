"""Tables that several commands print."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch_trn_emu.counters import unit_of

from .output import Table

__all__ = ["bytes_of", "count", "counter_table", "microseconds", "op_table", "range_lines"]


def count(value: float, unit: str) -> str:
    """Whole numbers with separators, others with six digits."""
    if unit in ("count", "B", "flop", "cycles"):
        return f"{value:,.0f}"
    return f"{value:.6g}"


def bytes_of(nbytes: float) -> str:
    return f"{nbytes / 2**30:.3f} GiB" if nbytes >= 2**27 else f"{nbytes / 2**20:.3f} MiB"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"


def counter_table(counters: Mapping[str, float]) -> Table:
    """Counters that are not zero."""
    rows = [(n, count(v, unit_of(n)), unit_of(n)) for n, v in counters.items() if v]
    return Table(title="Counters", head=("counter", "value", "unit"), rows=rows)


def range_lines(record: Mapping[str, Any]) -> list[str]:
    """How far to trust the time of a record; earlier versions wrote none."""
    return [record["range"]["text"]] if "range" in record else []


def op_table(ops: Iterable[Mapping[str, Any]], most: int) -> Table:
    rows = [
        (
            row["op"],
            f"{row['calls']:,}",
            microseconds(row["device_s"]),
            f"{row['range_low']:.2f} to {row['range_high']:.2f}" if "range_low" in row else "",
            f"{row['share']:.1%}",
            row["engine"],
            row["status"],
            row["note"],
        )
        for row in list(ops)[:most]
    ]
    head = ("operator", "calls", "us", "range", "share", "engine", "price", "note")
    return Table(title="Operators, longest first", head=head, rows=rows)
