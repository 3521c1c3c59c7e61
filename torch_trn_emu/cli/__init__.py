"""What the commands of `trn-emu` do: a module for each, with a function `execute(options)`.

`torch_trn_emu_cli.py`, beside the package, reads the command line before torch is imported.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module

from .traceback import from_script, show_only_script

__all__ = ["execute", "main"]

_EXIT_REFUSED, _EXIT_INTERRUPTED = 3, 130


class Terminated(BaseException):
    """A signal that ends processes, such as SIGTERM, while a run is recorded."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.exit_status = 128 + number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    from torch_trn_emu_cli import main as read_and_run

    return read_and_run(arguments)


def execute(options: Namespace) -> int:
    """Run the command that `options` name; what a user's script raises passes."""
    try:
        return int(import_module(f".{options.command}", __name__).execute(options))
    except KeyboardInterrupt:
        print("trn-emu: interrupted by Ctrl-C", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except Terminated as ended:
        print(f"trn-emu: terminated by {ended.name}", file=sys.stderr)
        return ended.exit_status
    except BrokenPipeError:  # the reader has gone, as with `| head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if options.command in ("run", "estimate") and from_script(error):
            show_only_script(error)
            raise
        print(f"trn-emu {options.command}: {error}", file=sys.stderr)
        return _EXIT_REFUSED
