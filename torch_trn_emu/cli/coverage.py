"""`trn-emu coverage`: each operator's contract, the status of its price, its calls in a run."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from torch_trn_emu.accelerated import KERNELS
from torch_trn_emu.calls import Call
from torch_trn_emu.ops import OPS
from torch_trn_emu.ops.unbounded import worth
from torch_trn_emu.parity.noise import matmul_kind

from .output import Report, Table, show
from .record import read_record

__all__ = ["coverage", "execute"]

# Of a price: by the operator's own row, by its class, nothing to pay, or unknown: docs/coverage.md.
STATUSES = ("modelled", "computed", "inferred", "free", "not modelled")
_NOT_ON_HOST = frozenset(name.partition(".")[0] for name in KERNELS)


def execute(options: Namespace) -> int:
    calls = _calls(read_record(options.run)) if options.run else None
    rows = [row for row in coverage(calls) if options.status in (None, row["price"])]
    head = ("operator", "contract", "price", "engine", "calls", "note")
    cells = [tuple(str(row[name]) for name in ("op", *head[1:])) for row in rows]
    kinds = sorted({row["price"] for row in rows})
    lines = [f"{sum(r['price'] == kind for r in rows)} {kind}" for kind in kinds]
    table = Table(title="Operators", head=head, rows=cells)
    show(Report(data=rows, lines=[", ".join(lines)], tables=[table]), as_json=options.json)
    return 0


def coverage(calls: Mapping[str, tuple[int, str, str]] | None = None) -> list[dict[str, Any]]:
    """A row for each operator: all of OPS, or those in `calls` (calls, status, note)."""
    rows = list(_of_run(calls) if calls is not None else _of_table())
    return sorted(rows, key=lambda row: (-(row["calls"] or 0), row["op"]))


def _of_table() -> Iterator[dict[str, Any]]:
    for row in OPS.values():
        yield _row(row.name, row.engine, row.status, row.note, "")


def _of_run(calls: Mapping[str, tuple[int, str, str]]) -> Iterator[dict[str, Any]]:
    for op, (count, status, note) in calls.items():
        name = Call(op, (), ()).name
        found = OPS.get(name)
        yield _row(op, found.engine if found else "by its class", status, note, count)


def _row(op: str, engine: str, status: str, note: str, calls: int | str) -> dict[str, Any]:
    kind = matmul_kind(Call(op, (), ()).name)
    if kind:
        contract = f"operands follow the policy ({kind})"
    elif op.partition("::")[2].partition(".")[0] in _NOT_ON_HOST or op in _NOT_ON_HOST:
        contract = "own kernel: docs/fidelity.md"
    else:
        contract = "bitwise equal to the host"
    return {
        "op": op,
        "contract": contract,
        "price": worth(Call(op, (), ()).name, status),
        "engine": engine,
        "calls": calls,
        "note": note,
    }


def _calls(record: dict[str, Any]) -> dict[str, tuple[int, str, str]]:
    found: dict[str, tuple[int, str, str]] = {}
    for row in record["ops"]:
        before = found.get(row["op"], (0, "", ""))[0]
        found[row["op"]] = (before + row["calls"], row["status"], row["note"])
    return found
