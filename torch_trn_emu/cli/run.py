"""`trn-emu run`: an unmodified script on the emulated chip."""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from torch_trn_emu.files import replacing, write_text
from torch_trn_emu.profiler import profile
from torch_trn_emu.report import chip_report

from .environment import add_chip_options, apply
from .record import Record, Values, record_of
from .script import add_script_arguments, command_of, run_script

__all__ = ["HELP", "add_arguments", "execute"]

HELP = "run an unmodified script on the emulated chip"


def add_arguments(parser: ArgumentParser) -> None:
    add_chip_options(parser)
    parser.add_argument(
        "--profile",
        metavar="FOLDER",
        help="write run.json, report.html and trace.json.gz (for Perfetto) there",
    )
    parser.add_argument("--with-stack", action="store_true", help="profile the script's lines too")
    parser.add_argument("--summary", action="store_true", help="end with what the chip did")
    alias = parser.add_mutually_exclusive_group()
    for name in ("cuda", "neuron"):
        alias.add_argument(
            f"--as-{name}",
            dest="alias",
            action="store_const",
            const=name,
            help=f"the script says {name}",
        )
    add_script_arguments(parser)


def execute(options: Namespace) -> int:
    """The script's exit status. What it raises passes, after the files are written."""
    apply(options)
    if not (options.profile or options.json):
        try:
            run_script(options)
        finally:
            _summary(options)
        return 0
    profiled = profile(with_stack=options.with_stack)
    values, ended = Values(options.script), "with an error"
    try:
        with profiled, values:
            run_script(options)
        ended = "well"
    except SystemExit as stopped:
        ended = "well" if not stopped.code else ended
        raise
    except KeyboardInterrupt:
        ended = "by Ctrl-C"
        raise
    finally:
        sys.stdout.flush()
        _write(options, profiled, record_of(command_of(options), profiled, values.rows, ended))
        _summary(options)
    return 0


def _write(options: Namespace, profiled: profile, record: Record) -> None:
    text = json.dumps(record, indent=1) + "\n"
    if options.profile:
        folder = Path(options.profile)
        write_text(folder / "run.json", text)
        with replacing(folder / "report.html") as draft:
            profiled.export_html(draft)
        with replacing(folder / "trace.json.gz") as draft:
            profiled.export_chrome_trace(draft)
    if options.json:
        print(text, end="")


def _summary(options: Namespace) -> None:
    if options.summary:
        sys.stdout.flush()
        print("\n" + chip_report(), file=sys.stderr)
