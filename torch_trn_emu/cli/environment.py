"""Options about the chip. Some the emulator reads when torch is imported: the process starts again.

The environment is set as well, so that processes which the script starts see the same.
"""

import os
import sys
from argparse import ArgumentParser, Namespace

import torch

__all__ = ["add_chip_options", "apply"]

# Read once, when torch is imported.
_AT_IMPORT = {"chip": "TRN_EMU_CHIP", "lnc": "NEURON_LOGICAL_NC_CONFIG", "alias": "TRN_EMU_AS"}


def add_chip_options(parser: ArgumentParser) -> None:
    parser.add_argument("--chip", help="trn1, trn2 or trn3")
    parser.add_argument("--lnc", help="physical cores per logical core")
    parser.add_argument("--matmul", help="precision policy: mxfp8, mxfp8_all, mxfp4, bf16, fp32")


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
