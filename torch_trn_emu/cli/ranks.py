"""Runs of several ranks: each process records itself into a folder of its own, `rank0` and so on.

`trn-emu run --profile out` sets TRN_EMU_PROFILE for the processes that the script starts; torch's
autoload then calls `record_this_process` in each.
"""

import atexit
import gzip
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch_trn_emu.files import replacing, write_text
from torch_trn_emu.profiler import profile
from torch_trn_emu.settings import settings
from torch_trn_emu.trn.distributed import place_in_world

from .record import Values, about_run, read_record, record_of

__all__ = [
    "ENDING",
    "FOLDER",
    "MOST_LAUNCHES",
    "forget_ranks",
    "join_traces",
    "read_ranks",
    "record_this_process",
    "write_record",
]

MOST_LAUNCHES = 200_000  # recorded of one process
FOLDER = "rank{}"
ENDING = (signal.SIGTERM, signal.SIGHUP)  # a scheduler's, and that of a terminal that closes


def record_this_process() -> None:
    """Profile from now on; at exit write what a rank did. A process that is none writes nothing."""
    profiled = profile(max_launches=MOST_LAUNCHES)
    values = Values(sys.argv[0])
    profiled.start()
    values.__enter__()
    for number in ENDING:  # torchrun ends the other ranks by SIGTERM
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    atexit.register(_write, Path(settings().profile), profiled, values)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _write(folder: Path, profiled: profile, values: Values) -> None:
    with suppress(RuntimeError):  # the script may have ended a profile of its own
        profiled.stop()
    rank, world = place_in_world()
    if world < 2:
        return
    ended = "with an error" if hasattr(sys, "last_value") else "well"
    record = record_of([*sys.argv], profiled, values.rows, ended)
    write_record(folder / FOLDER.format(rank), profiled, record)


def write_record(folder: Path, profiled: profile, record: dict[str, Any]) -> None:
    """The three files of a run: its data, its trace and its page."""
    write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")
    with replacing(folder / "trace.json.gz") as draft:
        skip = len(profiled.recording.launches) // 2  # a loop that has settled
        profiled.export_chrome_trace(draft, skip_launches=skip)
    with replacing(folder / "report.html") as draft:
        profiled.export_html(draft, about=about_run(record))


def forget_ranks(folder: Path) -> None:
    """Remove what the ranks of an earlier run left."""
    for old in _folders(folder):
        shutil.rmtree(old)


def _folders(folder: Path) -> list[Path]:
    found = [p for p in folder.glob(FOLDER.format("*")) if p.name[4:].isdecimal() and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name[4:]))


def read_ranks(folder: str | Path) -> list[dict[str, Any]]:
    """The records of all ranks that wrote one, by rank; none if the folder is of one process."""
    found = [f for f in _folders(Path(folder)) if (f / "run.json").exists()]
    records = [read_record(f) for f in found]
    world = records[0].get("world", len(records)) if records else 0
    return [record for record in records if record.get("rank", 0) < world]


def join_traces(folder: Path) -> None:
    """One trace of all ranks, a process for each: their simulated clocks agree."""
    with replacing(folder / "trace.json.gz") as draft, gzip.open(draft, "wt") as file:
        events = _events_of_all(folder)
        file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
        for k, event in enumerate(events):
            file.write((",\n" if k else "") + json.dumps(event, separators=(",", ":")))
        file.write("\n]}\n")


def _events_of_all(folder: Path) -> Iterator[dict[str, Any]]:
    for place in _folders(folder):
        rank, trace = int(place.name[4:]), place / "trace.json.gz"
        if not trace.exists():
            continue
        with gzip.open(trace, "rt") as file:
            found = json.load(file)["traceEvents"]
        for event in found:
            if event["name"] == "process_name":
                event["args"]["name"] = f"rank {rank}, {event['args']['name']}"
            if event.get("cat") == "launch":
                event["id"] = f"{rank}.{event['id']}"
            yield event | {"pid": 1000 * rank + event["pid"]}
