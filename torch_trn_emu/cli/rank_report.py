"""The report on a run of several ranks: who waited for whom, and which communication is exposed."""

from collections.abc import Sequence
from typing import Any

from torch_trn_emu.profiler.summary import gib, seconds

from .output import Report, Table
from .record import ENDINGS
from .tables import bytes_of, op_table, range_lines

__all__ = ["rank_report"]

Record = dict[str, Any]


def rank_report(records: Sequence[Record], rows: int) -> Report:
    slowest = max(records, key=lambda r: (r["elapsed_s"], -r["rank"]))
    verdict = slowest["verdict"]
    lines = [
        f"{' '.join(records[0]['command'])}: {_ending(records)}",
        f"{slowest['chip']}, {slowest['lnc']} physical core(s) per logical core, "
        f"matmul policy {slowest['matmul']}, {_system(slowest)}",
        f"simulated time {slowest['elapsed_s']:.6f} s (rank {slowest['rank']}, the longest); the "
        f"cores worked {_span([r['counters']['core_busy_time'] for r in records])} of it",
        *range_lines(slowest),
        _communication(records),
        f"rank {slowest['rank']}: {verdict['sentence']}",
        *(change["text"] for change in verdict["changes"]),
    ]
    tables = [
        Table(title="Ranks", head=_RANK_HEAD, rows=[_rank(r) for r in records]),
        Table(title="Collectives, most exposed first", head=_HEAD, rows=_collectives(records)),
        op_table(slowest["ops"], rows),
        Table(title="Numbers read by rank 0", head=("where", "value"), rows=_values(records)),
    ]
    return Report(data={"ranks": list(records)}, lines=lines, tables=tables)


def _ending(records: Sequence[Record]) -> str:
    world = records[0].get("world", len(records))
    failed = [r for r in records if r["ended"] != "well"]
    said = ", ".join(f"rank {r['rank']} {ENDINGS.get(r['ended'], r['ended'])}" for r in failed)
    missing = sorted(set(range(world)) - {r["rank"] for r in records})
    if missing:
        said += f"{', ' if said else ''}no record of rank {', '.join(map(str, missing))}"
    return f"{world} ranks, {said or 'all finished'}"


def _system(record: Record) -> str:
    status = ", its collectives extrapolated" if record["chip"] == "trn3" else ""
    return f"{record.get('system', 'unknown system')}{status}"


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.6f} s" if low == high else f"{low:.6f} to {high:.6f} s"


def _communication(records: Sequence[Record]) -> str:
    active = sum(r["counters"]["cc_op_active_time"] for r in records) / len(records)
    exposed = sum(r["counters"]["cc_exposed_time"] for r in records) / len(records)
    elapsed = max(r["elapsed_s"] for r in records)
    if not active:
        return "no collectives"
    return (
        f"communication, a rank on average: {seconds(active)}, of which {seconds(exposed)} "
        f"({exposed / active:.0%}) exposed: {exposed / elapsed:.1%} of the simulated time"
        if elapsed
        else f"communication: {seconds(active)}"
    )


_RANK_HEAD = ("rank", "simulated", "worked", "dispatch", "collectives", "active", "exposed",
              "late", "peak HBM", "ended")  # fmt: skip


def _rank(r: Record) -> tuple[str, ...]:
    c = r["counters"]
    peak = max((sum(parts.values()) for parts in r["memory_peak_bytes"].values()), default=0)
    return (
        str(r["rank"]),
        seconds(r["elapsed_s"]),
        seconds(c["core_busy_time"]),
        seconds(c["core_idle_time"]),
        f"{c['cc_op_count']:,.0f}",
        seconds(c["cc_op_active_time"]),
        seconds(c["cc_exposed_time"]),
        seconds(sum(row["late_s"] for row in r["collectives"])),
        bytes_of(peak),
        str(ENDINGS.get(r["ended"], r["ended"])),
    )


_HEAD = ("collective", "group", "ranks", "algorithm", "links", "elements", "bytes", "calls",
         "each", "active", "exposed", "late", "algorithm GB/s", "bus GB/s")  # fmt: skip
_KEY = ("operation", "group", "ranks", "algorithm", "level", "dtype", "elements", "bytes")


def _collectives(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Of each kind the rank on which most is exposed, and the rank that waits longest."""
    kinds: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        for row in record["collectives"]:
            kinds.setdefault(tuple(row[name] for name in _KEY), []).append(row)
    merged = [_most(rows) for rows in kinds.values()]
    merged.sort(key=lambda row: (-row["exposed_s"], -row["duration_s"], row["operation"]))
    return [
        (
            row["operation"],
            row["group"],
            str(row["ranks"]),
            row["algorithm"],
            row["level"],
            f"{row['dtype']}[{row['elements']:,}]",
            gib(row["bytes"]),
            f"{row['calls']:,}",
            seconds(row["duration_s"] / row["calls"]),
            *(seconds(row[name]) for name in ("duration_s", "exposed_s", "late_s")),
            *(f"{row[f'{kind}_bandwidth'] / 1e9:.1f}" for kind in ("algorithm", "bus")),
        )
        for row in merged
    ]


def _most(rows: Sequence[Record]) -> Record:
    most = dict(max(rows, key=lambda row: row["exposed_s"]))
    return most | {"late_s": max(row["late_s"] for row in rows)}


def _values(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(v["where"], f"{v['value']:.6g}") for v in records[0]["values"]][-10:]
