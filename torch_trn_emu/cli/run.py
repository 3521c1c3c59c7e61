"""`trn-emu run`: an unmodified script on the emulated chip."""

import json
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from torch_trn_emu.files import replacing, write_text
from torch_trn_emu.profiler import profile
from torch_trn_emu.profiler.steps import settled_s, steps
from torch_trn_emu.profiler.summary import seconds

from . import Terminated
from .environment import apply
from .record import Record, Values, about_run, record_of
from .script import command_of, run_script
from .summary import chip_report

__all__ = ["execute"]

MOST_LAUNCHES = 200_000  # recorded of one run


def execute(options: Namespace) -> int:
    """The script's exit status. What it raises passes, after the files are written."""
    apply(options)
    if not (options.profile or options.json):
        try:
            run_script(options)
        finally:
            _summary(options)
        return 0
    profiled = profile(with_stack=options.with_stack, max_launches=MOST_LAUNCHES)
    values, ended = Values(options.script), "with an error"
    try:
        with _stopped_by_sigterm(), profiled, values:
            run_script(options)
        ended = "well"
    except SystemExit as stopped:
        ended = "well" if not stopped.code else ended
        raise
    except KeyboardInterrupt:
        ended = "by Ctrl-C"
        raise
    except Terminated:
        ended = "by SIGTERM"
        raise
    finally:
        sys.stdout.flush()
        _write(options, profiled, record_of(command_of(options), profiled, values.rows, ended))
        _summary(options)
    return 0


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the script as Ctrl-C does, unless it has a handler of its own."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            # A second one, while the record is written, waits no longer.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _write(options: Namespace, profiled: profile, record: Record) -> None:
    text = json.dumps(record, indent=1) + "\n"
    if options.profile:
        folder = Path(options.profile)
        write_text(folder / "run.json", text)
        with replacing(folder / "trace.json.gz") as draft:
            skip = len(profiled.recording.launches) // 2  # a loop that has settled
            profiled.export_chrome_trace(draft, skip_launches=skip)
        with replacing(folder / "report.html") as draft:
            profiled.export_html(draft, about=about_run(record))
        print(_ending(profiled, folder), file=sys.stderr)
    if options.json:
        print(text, end="")


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
