"""`trn-emu run`: an unmodified script on the emulated chip."""

import json
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from torch_trn_emu.files import write_text
from torch_trn_emu.profiler import profile
from torch_trn_emu.profiler.steps import settled_s, steps
from torch_trn_emu.profiler.summary import seconds

from . import Terminated
from .environment import apply
from .rank_report import rank_report
from .ranks import (
    ENDING,
    FOLDER,
    MOST_LAUNCHES,
    forget_ranks,
    join_traces,
    read_ranks,
    write_record,
)
from .record import Record, Values, record_of
from .script import command_of, run_script
from .summary import chip_report

__all__ = ["execute"]


def execute(options: Namespace) -> int:
    """The script's exit status. What it raises passes, after the files are written."""
    apply(options)
    if not (options.profile or options.json):
        _run_without_a_record(options)
        return 0
    profiled = profile(with_stack=options.with_stack, max_launches=MOST_LAUNCHES)
    values, ended = Values(options.script), "with an error"
    try:
        with _ranks_record(options.profile), _stopped_by_signals(), profiled, values:
            run_script(options)
        ended = "well"
    except SystemExit as stopped:
        ended = "well" if not stopped.code else ended
        raise
    except KeyboardInterrupt:
        ended = "by Ctrl-C"
        raise
    except Terminated as stopped:
        ended = f"by {stopped.name}"
        raise
    finally:
        sys.stdout.flush()
        _write(options, profiled, record_of(command_of(options), profiled, values.rows, ended))
        _summary(options)
    return 0


def _run_without_a_record(options: Namespace) -> None:
    if not options.summary:
        run_script(options)
        return
    try:
        with _stopped_by_signals():
            run_script(options)
    finally:
        _summary(options)


@contextmanager
def _ranks_record(folder: str | None) -> Iterator[None]:
    """Processes that the script starts record themselves, if they are ranks."""
    if not folder:
        yield
        return
    forget_ranks(Path(folder))
    before = os.environ.get("TRN_EMU_PROFILE")
    os.environ["TRN_EMU_PROFILE"] = os.path.abspath(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRN_EMU_PROFILE"]
        else:
            os.environ["TRN_EMU_PROFILE"] = before


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """They end the script as Ctrl-C does, unless it has a handler of its own or ignores them."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    main = threading.current_thread() is threading.main_thread()
    watched = [each for each in ENDING if main and signal.getsignal(each) is signal.SIG_DFL]
    for each in watched:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in watched:
            if signal.getsignal(each) is stop:
                # A second one, while the record is written, waits no longer.
                signal.signal(each, signal.SIG_DFL)


def _write(options: Namespace, profiled: profile, record: Record) -> None:
    text = json.dumps(record, indent=1) + "\n"
    if options.profile:
        print(_write_files(Path(options.profile), profiled, record), file=sys.stderr)
    if options.json:
        print(text, end="")


def _write_files(folder: Path, profiled: profile, record: Record) -> str:
    """The files of this process, of its ranks, or of both; what to say at the end."""
    rank, world = record["rank"], record["world"]
    others = read_ranks(folder)
    if not others and world < 2:
        write_record(folder, profiled, record)
        return _ending(profiled, folder)
    if profiled.recording.launches or world > 1:  # this process was a rank too
        write_record(folder / FOLDER.format(rank), profiled, record)
    ranks = read_ranks(folder)
    (folder / "run.json").unlink(missing_ok=True)
    join_traces(folder)
    found = rank_report(ranks, 20)
    write_text(folder / "report.html", found.html(" ".join(ranks[0]["command"])))
    return "\n".join(
        (
            *found.lines[2:5],
            f"report, for a browser: {folder / 'report.html'}; of one rank: "
            f"{folder / FOLDER.format(0) / 'report.html'}",
            f"trace, for Perfetto: {folder / 'trace.json.gz'}; tables: trn-emu report {folder}",
        )
    )


def _ending(profiled: profile, folder: Path) -> str:
    """Four lines: the verdict, the step time, the files."""
    recording = profiled.recording
    found = steps(recording)
    elapsed = seconds(recording.elapsed_ns * 1e-9)
    step = (
        f"step time: {seconds(settled_s(found))} simulated, once settled "
        f"({len(found):,} steps, {elapsed} in all)"
        if found
        else f"simulated time: {elapsed} for {len(recording.launches):,} launches"
    )
    return "\n".join(
        (
            "verdict: " + profiled.verdict().sentence,
            step,
            f"report, for a browser: {folder / 'report.html'}",
            f"trace, for Perfetto: {folder / 'trace.json.gz'}; tables: trn-emu report {folder}",
        )
    )


def _summary(options: Namespace) -> None:
    if options.summary:
        sys.stdout.flush()
        print("\n" + chip_report(), file=sys.stderr)
