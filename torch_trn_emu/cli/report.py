"""`trn-emu report`: a recorded run as tables or as a page."""

from argparse import ArgumentParser, Namespace
from typing import Any

from torch_trn_emu.files import write_text

from .arguments import positive
from .output import Report, Table, show
from .record import read_record
from .tables import bytes_of, counter_table, microseconds, op_table

__all__ = ["HELP", "add_arguments", "execute", "report"]

HELP = "a recorded run as tables or as a page"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run.json, or the folder it is in")
    parser.add_argument("--html", metavar="FILE", help="write a page that needs nothing else")
    parser.add_argument("--rows", type=positive, default=20, help="operators to list")


def execute(options: Namespace) -> int:
    record = read_record(options.run)
    found = report(record, options.rows)
    if options.html:
        write_text(options.html, found.html(" ".join(record["command"])))
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
        f"{' '.join(record['command'])}, ended {record['ended']}",
        f"{record['chip']}, {record['lnc']} physical core(s) per logical one, "
        f"matmul policy {record['matmul']}",
        f"simulated time {elapsed:.6f} s, of which the cores worked {busy:.6f} s",
        f"HBM at its peak: {memory or 'none'}",
        verdict["sentence"],
        *(change["text"] for change in verdict["changes"]),
    ]
    values = [(v["where"], f"{v['value']:.6g}") for v in record["values"]]
    tables = [
        op_table(record["ops"], rows),
        _modules(record["modules"], rows),
        counter_table(record["counters"]),
        Table(title="Numbers the script read", head=("where", "value"), rows=values[-rows:]),
    ]
    return Report(data=record, lines=lines, tables=tables)


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
