"""`trn-emu diff`: two recorded runs side by side, in values, time and counters."""

import math
from argparse import Namespace
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from torch_trn_emu.counters import unit_of
from torch_trn_emu.profiler.values import curves

from .output import Report, Table, show
from .record import Record, read_record
from .tables import count, range_lines

__all__ = ["DIVERGES", "difference", "execute"]

DIVERGES = 1e-3  # chosen: more than another order of float32 sums explains, less than bfloat16 does


def execute(options: Namespace) -> int:
    data = difference(read_record(options.a), read_record(options.b))
    show(_report(data, options.rows), as_json=options.json)
    over = options.tolerance is not None and data["worst_relative"] > options.tolerance
    return int(over or (options.tolerance is not None and data["values_missing"] > 0))


def difference(a: Record, b: Record) -> dict[str, Any]:
    """Values pair up by the line that read them and their order there; operators by name.

    Two scripts that share no such line, eager and compiled for instance, pair up by order alone.
    """
    ours, theirs = _by_place(a), _by_place(b)
    if not ours.keys() & theirs.keys():
        ours, theirs = _by_order(a), _by_order(b)
    values: list[dict[str, Any]] = [
        {
            "where": where,
            "ordinal": i,
            "a": x,
            "b": theirs[where, i],
            "relative": _relative(x, theirs[where, i]),
        }
        for (where, i), x in ours.items()
        if (where, i) in theirs
    ]
    finite = [v["relative"] for v in values if v["relative"] is not None]
    endless = any(v["relative"] is None for v in values)
    first = next((v for v in values if v["relative"] is None or v["relative"] > DIVERGES), None)
    return {
        "a": _about(a),
        "b": _about(b),
        "values": values,
        "first_divergence": first,
        "values_missing": len(ours.keys() ^ theirs.keys()),
        "worst_relative": math.inf if endless else max(finite, default=0.0),
        "ops": list(_ops(a, b)),
        "counters": {
            name: {"a": value, "b": b["counters"].get(name)}
            for name, value in a["counters"].items()
        },
    }


def _about(record: Record) -> dict[str, Any]:
    names = ("command", "chip", "lnc", "matmul", "ended", "elapsed_s", "memory_peak_bytes")
    return {name: record[name] for name in names}


def _by_place(record: Record) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], float] = {}
    ordinals: dict[str, int] = {}
    for row in record["values"]:
        i = ordinals.get(row["where"], 0)
        ordinals[row["where"]] = i + 1
        found[row["where"], i] = row["value"]
    return found


def _by_order(record: Record) -> dict[tuple[str, int], float]:
    return {("number", i): row["value"] for i, row in enumerate(record["values"])}


def _relative(a: float, b: float) -> float | None:
    """None where one of them is no finite number and they are not alike."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return None
    return abs(a - b) / abs(a) if a else None  # no relative difference from zero


def _ops(a: Record, b: Record) -> Iterator[dict[str, Any]]:
    ours, theirs = _totals(a), _totals(b)
    names = sorted(
        ours.keys() | theirs.keys(),
        key=lambda n: -abs(theirs.get(n, (0, 0.0))[1] - ours.get(n, (0, 0.0))[1]),
    )
    for name in names:
        calls, seconds = zip(ours.get(name, (0, 0.0)), theirs.get(name, (0, 0.0)), strict=True)
        yield {
            "op": name,
            "a_calls": calls[0],
            "b_calls": calls[1],
            "a_s": seconds[0],
            "b_s": seconds[1],
        }


def _totals(record: Record) -> dict[str, tuple[int, float]]:
    rows = sorted(record["ops"], key=lambda row: row["op"])
    groups = ((name, list(group)) for name, group in groupby(rows, key=lambda row: row["op"]))
    return {n: (sum(r["calls"] for r in g), sum(r["device_s"] for r in g)) for n, g in groups}


def _report(data: dict[str, Any], rows: int) -> Report:
    a, b = data["a"], data["b"]
    lines = [
        f"{name}: {' '.join(run['command'])} on {run['chip']}, policy {run['matmul']}, "
        f"simulated time {run['elapsed_s']:.6f} s"
        for name, run in (("A", a), ("B", b))
    ]
    if a["elapsed_s"]:
        lines.append(f"B takes {b['elapsed_s'] / a['elapsed_s']:.3f} of A's time")
    lines += [f"{name}: {line}" for name, run in (("A", a), ("B", b)) for line in range_lines(run)]
    lines.append(
        f"{len(data['values'])} numbers read by both scripts, relative difference up to "
        f"{data['worst_relative']:.3g}; {data['values_missing']} in one run only"
    )
    if (first := data["first_divergence"]) is not None:
        lines.append(
            f"first divergence (relative difference above {DIVERGES:g}): {first['where']} "
            f"#{first['ordinal'] + 1}, {first['a']:.6g} in A and {first['b']:.6g} in B"
        )
    elif data["values"]:
        lines.append(f"no divergence (no relative difference above {DIVERGES:g})")
    lines += [
        f"{name} {line}"
        for name in ("A", "B")
        for line in curves([v | {"value": v[name.lower()]} for v in data["values"]])
    ]
    return Report(
        data=data | {"worst_relative": _finite(data["worst_relative"])},
        lines=lines,
        tables=[_value_table(data, rows), _op_table(data, rows), _counter_table(data)],
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _value_table(data: dict[str, Any], most: int) -> Table:
    """The first, and the last ones."""
    values = data["values"]
    chosen = values if len(values) <= most else values[: most // 2] + values[-(most // 2) :]
    rows = [
        (
            f"{v['where']} #{v['ordinal'] + 1}",
            f"{v['a']:.6g}",
            f"{v['b']:.6g}",
            "-" if v["relative"] is None else f"{v['relative']:.2e}",
        )
        for v in chosen
    ]
    return Table(
        title="Numbers read by the scripts", head=("where", "A", "B", "relative"), rows=rows
    )


def _op_table(data: dict[str, Any], most: int) -> Table:
    rows = [
        (
            op["op"],
            f"{op['a_calls']:,}",
            f"{op['b_calls']:,}",
            f"{op['a_s'] * 1e6:,.1f}",
            f"{op['b_s'] * 1e6:,.1f}",
            f"{(op['b_s'] - op['a_s']) * 1e6:+,.1f}",
        )
        for op in data["ops"][:most]
    ]
    head = ("operator", "A calls", "B calls", "A us", "B us", "difference")
    return Table(title="Operators, largest difference first", head=head, rows=rows)


def _counter_table(data: dict[str, Any]) -> Table:
    rows = []
    for name, pair in data["counters"].items():
        x, y, unit = pair["a"], pair["b"] or 0.0, unit_of(name)
        if x != y:
            ratio = f"{y / x:.3f}" if x else "-"
            rows.append((name, count(x, unit), count(y, unit), ratio, unit))
    head = ("counter", "A", "B", "B / A", "unit")
    return Table(title="Counters that differ", head=head, rows=rows)
