"""A recording as JSON and as Parquet: the same tables. Add a table as a row of TABLES."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..counters import unit_of
from ..pricing import report_rows
from ..ranges import as_data, said
from .communication import collective_rows
from .graph_regions import region_rows
from .hooks import CATEGORIES
from .modules import module_rows, source_rows
from .recording import Recording
from .verdict import judge

__all__ = ["TABLES", "as_json", "write_json", "write_parquet"]

Row = dict[str, Any]


def _counters(r: Recording) -> Iterable[Row]:
    for name, value in r.counters.items():
        yield {"name": name, "value": value, "unit": unit_of(name)}


def _launches(r: Recording) -> Iterable[Row]:
    for x in r.launches:
        yield {
            "op": x.op,
            "signature": x.signature,
            "engine": x.price.engine,
            "status": x.price.status,
            "device": x.device,
            "stream": x.stream,
            "host_ns": x.host_ns,
            "dispatch_ns": x.dispatch_ns,
            "start_ns": x.start_ns,
            "duration_ns": x.duration_ns,
            "idle_ns": x.idle_ns,
            "phase": x.phase,
            "module": x.module,
            "source": x.source,
        }


def _memory(r: Recording) -> Iterable[Row]:
    for device, use in r.memory.items():
        for launches, nbytes in use.samples:
            yield {
                "device": device,
                "launches": launches,
                **{
                    f"{c.replace(' ', '_')}_bytes": n
                    for c, n in zip(CATEGORIES, nbytes, strict=True)
                },
            }


def _collectives(r: Recording) -> Iterable[Row]:
    for x in r.collectives:
        yield asdict(x) | {"arrivals_ns": list(x.arrivals_ns), "duration_ns": x.duration_ns}


def _rows_of(make: Callable[[Recording], Iterable[Any]]) -> Callable[[Recording], Iterable[Row]]:
    return lambda r: (asdict(row) for row in make(r))


TABLES: dict[str, Callable[[Recording], Iterable[Row]]] = {
    "counters": _counters,
    "ops": _rows_of(lambda r: report_rows(r.groups)),
    "modules": _rows_of(module_rows),
    "sources": _rows_of(source_rows),
    "graph_regions": _rows_of(region_rows),
    "collectives": _rows_of(collective_rows),
    "collective_calls": _collectives,
    "launches": _launches,
    "memory": _memory,
}


def as_json(recording: Recording) -> Row:
    """Everything but the single launches and memory samples, ready for `json.dumps`."""
    r = recording
    tables = {name: list(make(r)) for name, make in TABLES.items() if name not in _LONG}
    return {
        "chip": r.chip.name,
        "physical_cores_per_logical_core": r.lnc,
        "elapsed_s": r.elapsed_ns * 1e-9,
        "range": as_data(r.range, r.chip),
        "launches": len(r.launches),
        "launches_left_out": r.left_out,
        "verdict": asdict(judge(r)),
        "memory_peak_bytes": {str(device): dict(use.peak) for device, use in r.memory.items()},
        "hbm_capacity_bytes": {str(d): use.capacity_bytes for d, use in r.memory.items()},
        **tables,
        "counters": dict(r.counters),
    }


_LONG = ("launches", "memory", "collective_calls")


def write_json(recording: Recording, path: Path) -> None:
    """`as_json` to a file."""
    path.write_text(json.dumps(as_json(recording), indent=1) + "\n")


def write_parquet(recording: Recording, folder: Path) -> None:
    """One file for each table that has rows; needs pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'export_parquet needs pyarrow: pip install "torch_trn_emu[parquet]", or use '
            "export_json, which needs nothing."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    about = {"chip": recording.chip.name, "range": said(recording.range, recording.chip)}
    for name, make in TABLES.items():
        if rows := list(make(recording)):
            table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(about)
            parquet.write_table(table, folder / f"{name}.parquet")
