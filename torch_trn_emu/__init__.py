"""A PyTorch device, `trn`, that emulates AWS Trainium on an ordinary host.

`import torch` loads this package through its entry point; nothing else needs importing.
"""

# ruff: noqa: E402


def _autoload() -> None:
    """The entry point of installations that are older than `torch_trn_emu_autoload`."""


# `_autoload` stands first: this import of torch may call it while the package is half imported.

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"] and " -m torch_trn_emu " in f"{' '.join(sys.orig_argv)} ":
    from torch_trn_emu_cli import prepare  # help and wrong usage must not wait for torch

    prepare()

from ._library import use_library

use_library(__path__)

# isort: split
from . import compatibility  # first: it refuses a torch that the C++ library does not fit

# isort: split
from . import aliases, integrations, trn
from .host import host_device
from .precision import current_precision, precision, set_precision
from .trn.launches import launches, op_counts, op_report, reset_op_counts

if TYPE_CHECKING:
    from . import compiler
    from .estimation import estimate
    from .integrations.tensorboard import tensorboard_callback
    from .parity import compare, sensitivity
    from .profiler import profile
    from .trn.executor import executor_report

__all__ = [
    "compare",
    "compatibility",
    "compiler",
    "current_precision",
    "estimate",
    "executor_report",
    "host_device",
    "launches",
    "op_counts",
    "op_report",
    "precision",
    "profile",
    "reset_op_counts",
    "sensitivity",
    "set_precision",
    "tensorboard_callback",
    "trn",
]

if trn.is_available() and host_device().type == "cuda":
    from .triton import register as _register_kernels

    _register_kernels("CUDA")

__version__ = "0.1.0.dev0"

aliases.install()
integrations.prepare()


# Names that a program which only trains may never need, by the module that has them.
_LAZY = {
    "compare": "parity",
    "estimate": "estimation",
    "executor_report": "trn.executor",
    "profile": "profiler",
    "sensitivity": "parity",
    "tensorboard_callback": "integrations.tensorboard",
}


def __getattr__(name: str) -> Any:
    if name == "compiler":
        return import_module(".compiler", __name__)
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion offers: the public names, those not loaded yet too."""
    return [*__all__, "__version__"]
