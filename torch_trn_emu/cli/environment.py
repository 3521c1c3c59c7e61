"""Options about the chip. Some the emulator reads when torch is imported: the process starts again.

The environment is set as well, so that processes which the script starts see the same.
"""

import os
import sys
from argparse import Namespace

import torch

__all__ = ["apply"]

# Read once, when torch is imported.
_AT_IMPORT = {"chip": "TRN_EMU_CHIP", "lnc": "NEURON_LOGICAL_NC_CONFIG", "alias": "TRN_EMU_AS"}


def apply(options: Namespace) -> None:
    """Put the options in force. Raises ValueError for an unknown policy."""
    given = {
        variable: str(value)
        for option, variable in _AT_IMPORT.items()
        if (value := getattr(options, option, None)) is not None
    }
    if any(os.environ.get(variable) != value for variable, value in given.items()):
        os.environ.update(given)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if options.matmul is not None:
        torch.backends.trn.matmul.precision = options.matmul  # type: ignore[attr-defined]
        os.environ["TRN_EMU_MATMUL"] = options.matmul
