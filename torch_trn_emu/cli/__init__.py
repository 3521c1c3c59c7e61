"""The command line, `trn-emu` or `python -m torch_trn_emu`: a module for each command.

argparse, because it is there: no dependency, and torch's import is what takes the time.

Exit status
0    the command did what it should
1    it found what it was asked to look for (doctor: a fault; diff: over the tolerance), or the
     script ended with an error
2    the command line makes no sense
3    the emulator refused, or a file was not what it should be; the text says why
130  Ctrl-C
Of `run`, the script's own status.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

__all__ = ["COMMANDS", "main"]

COMMANDS = ("run", "info", "estimate", "report", "diff", "coverage", "doctor", "vectors")

_EXIT_REFUSED, _EXIT_INTERRUPTED = 3, 130


def parser() -> argparse.ArgumentParser:
    """All commands; `trn-emu COMMAND --help` describes one."""
    top = argparse.ArgumentParser(
        prog="trn-emu",
        description="PyTorch on an emulated AWS Trainium.",
        epilog=(__doc__ or "")[(__doc__ or "").index("Exit status") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f".{name}", __name__)
        one = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        one.add_argument("--json", action="store_true", help="print JSON")
        module.add_arguments(one)
        one.set_defaults(execute=module.execute)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; a script's error passes as Python prints it."""
    options = parser().parse_args(arguments)
    try:
        return int(options.execute(options))
    except KeyboardInterrupt:
        print("trn-emu: stopped by Ctrl-C", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader has gone, as with `| head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if options.command in ("run", "estimate") and _from_script(error):
            raise
        print(f"trn-emu {options.command}: {error}", file=sys.stderr)
        return _EXIT_REFUSED


def _from_script(error: BaseException) -> bool:
    """Whether the user's script raised it, or cannot be compiled."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_globals.get("__name__") == "__main__":
            return True
        frame = frame.tb_next
    return isinstance(error, SyntaxError)
