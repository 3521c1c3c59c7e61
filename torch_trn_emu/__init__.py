"""A PyTorch device, `trn`, that emulates AWS Trainium on an ordinary host.

`import torch` loads this package through its entry point; nothing else needs importing.
"""

# ruff: noqa: E402


def _autoload() -> None:
    """Called at the end of `import torch`. The work is done by importing this package."""


# `_autoload` stands first: this import of torch may call it while the package is half imported.

from typing import TYPE_CHECKING, Any

from . import trn
from .host import host_device
from .precision import current_precision, precision, set_precision
from .trn.launches import launches, op_counts, op_report, reset_op_counts

if TYPE_CHECKING:
    from .estimation import estimate

__all__ = [
    "current_precision",
    "estimate",
    "host_device",
    "launches",
    "op_counts",
    "op_report",
    "precision",
    "reset_op_counts",
    "set_precision",
    "trn",
]

if trn.is_available() and host_device().type == "cuda":
    from .triton import register as _register_kernels

    _register_kernels("CUDA")

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    """`estimate` brings the lowering with it, which a program that trains may never need."""
    if name == "estimate":
        from .estimation import estimate

        return estimate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
