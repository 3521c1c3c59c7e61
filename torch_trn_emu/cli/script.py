"""Runs a user's script or module in this process, as `python` would."""

import runpy
import sys
from argparse import Namespace
from pathlib import Path

__all__ = ["command_of", "run_script"]


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
        raise FileNotFoundError(f"{path} not found. Give a script path, or -m MODULE.")
    sys.argv = command_of(options)
    sys.path.insert(0, str(path.resolve().parent))
    runpy.run_path(str(path), run_name="__main__")
