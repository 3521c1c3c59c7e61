"""`trn-emu report`: a recorded run, of one process or of all ranks, as tables or as a page."""

from argparse import Namespace
from typing import Any

from torch_trn_emu.files import write_text
from torch_trn_emu.profiler.graph_regions import REGION_HEAD
from torch_trn_emu.profiler.values import curves, drawn

from .output import Report, Table, show
from .rank_report import rank_report
from .ranks import read_ranks
from .record import ENDINGS, read_record
from .tables import bytes_of, counter_table, microseconds, op_table, range_lines

__all__ = ["execute", "report"]


def execute(options: Namespace) -> int:
    ranks = read_ranks(options.run)
    record = ranks[0] if ranks else read_record(options.run)
    found = rank_report(ranks, options.rows) if ranks else report(record, options.rows)
    if options.html:
        page = found.html(" ".join(record["command"]), drawn(record["values"]))
        write_text(options.html, page)
        print(f"wrote {options.html}")
    else:
        show(found, as_json=options.json)
    return 0


def report(record: dict[str, Any], rows: int) -> Report:
    busy, elapsed = record["counters"]["core_busy_time"], record["elapsed_s"]
    peaks = {i: sum(parts.values()) for i, parts in record["memory_peak_bytes"].items()}
    memory = ", ".join(f"trn:{i} {bytes_of(n)}" for i, n in peaks.items())
    verdict = record["verdict"]
    lines = [
        f"{' '.join(record['command'])}: {ENDINGS.get(record['ended'], record['ended'])}",
        f"{record['chip']}, {record['lnc']} physical core(s) per logical core, "
        f"matmul policy {record['matmul']}",
        f"simulated time {elapsed:.6f} s; the cores were busy for {busy:.6f} s",
        *range_lines(record),
        f"peak HBM: {memory or 'none'}",
        verdict["sentence"],
        *(change["text"] for change in verdict["changes"]),
        *curves(record["values"]),
    ]
    values = [(v["where"], f"{v['value']:.6g}") for v in record["values"]]
    tables = [
        op_table(record["ops"], rows),
        _modules(record["modules"], rows),
        _regions(record.get("graph_regions", []), rows),
        counter_table(record["counters"]),
        Table(title="Numbers read by the script", head=("where", "value"), rows=values[-rows:]),
    ]
    return Report(data=record, lines=lines, tables=tables)


def _regions(rows: list[dict[str, Any]], most: int) -> Table:
    longest = sorted(rows, key=lambda row: -row["device_s"])[:most]
    cells = [
        (row["graph"], row["region"], f"{row['launches']:,}", microseconds(row["device_s"]),
         f"{row['share']:.1%}")
        for row in longest
    ]  # fmt: skip
    return Table(title="Regions of compiled graphs", head=REGION_HEAD, rows=cells)


def _modules(rows: list[dict[str, Any]], most: int) -> Table:
    cells = [
        (
            row["module"] or "outside all",
            f"{row['calls']:,}",
            microseconds(row["total_s"]),
            microseconds(row["forward_s"]),
            microseconds(row["backward_s"]),
            f"{row['share']:.1%}",
        )
        for row in rows[:most]
    ]
    head = ("module", "calls", "us", "forward", "backward", "share")
    return Table(title="Modules, with those below them", head=head, rows=cells)
