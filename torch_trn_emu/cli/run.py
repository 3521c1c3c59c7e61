"""`trn-emu run`: an unmodified script on the emulated chip."""

import json
import sys
from argparse import ArgumentParser, Namespace
from contextlib import nullcontext
from pathlib import Path

from torch_trn_emu import trn
from torch_trn_emu.files import write_text
from torch_trn_emu.report import chip_report

from .environment import add_chip_options, apply
from .record import Values, record_of
from .script import add_script_arguments, command_of, run_script

__all__ = ["HELP", "add_arguments", "execute"]

HELP = "run an unmodified script on the emulated chip"


def add_arguments(parser: ArgumentParser) -> None:
    add_chip_options(parser)
    parser.add_argument("--profile", metavar="FOLDER", help="write run.json there")
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
    """The script's exit status. What it raises passes, after the record is written."""
    apply(options)
    trn.reset_counters()
    recording = options.profile or options.json
    values = Values(options.script) if recording else None
    ended = "with an error"
    try:
        with values or nullcontext():
            run_script(options)
        ended = "well"
    except SystemExit as stopped:
        ended = "well" if not stopped.code else ended
        raise
    except KeyboardInterrupt:
        ended = "by Ctrl-C"
        raise
    finally:
        _finish(options, values, ended)
    return 0


def _finish(options: Namespace, values: Values | None, ended: str) -> None:
    sys.stdout.flush()
    if values is not None:
        text = json.dumps(record_of(command_of(options), values.rows, ended), indent=1)
        if options.profile:
            write_text(Path(options.profile) / "run.json", text + "\n")
        if options.json:
            print(text)
    if options.summary:
        print("\n" + chip_report(), file=sys.stderr)
