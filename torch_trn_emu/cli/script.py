"""Runs a user's script or module in this process, as `python` would."""

import runpy
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path

__all__ = ["add_script_arguments", "command_of", "run_script"]


def add_script_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-m", dest="as_module", action="store_true", help="SCRIPT names a module")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=REMAINDER)


def command_of(options: Namespace) -> list[str]:
    return [options.script, *options.arguments]


def run_script(options: Namespace) -> None:
    """Raises FileNotFoundError for a script that is not there, and what the script raises."""
    if options.as_module:
        sys.argv = command_of(options)
        sys.path.insert(0, "")
        runpy.run_module(options.script, run_name="__main__", alter_sys=True)
        return
    path = Path(options.script)
    if not path.exists():
        raise FileNotFoundError(f"no script {options.script}: give a path, or -m and a module.")
    sys.argv = command_of(options)
    sys.path.insert(0, str(path.resolve().parent))
    runpy.run_path(str(path), run_name="__main__")
