"""A PyTorch device, `trn`, that emulates AWS Trainium on an ordinary host.

`import torch` loads this package through its entry point; nothing else needs importing.
"""

# ruff: noqa: E402


def _autoload() -> None:
    """Called at the end of `import torch`. The work is done by importing this package."""


# `_autoload` stands first: this import of torch may call it while the package is half imported.

from typing import TYPE_CHECKING, Any

from . import trn
from .precision import current_precision, precision, set_precision
from .trn.launches import launches, op_counts, op_report, reset_op_counts

if TYPE_CHECKING:
    from .estimation import estimate
    from .profiler import profile

__all__ = [
    "current_precision",
    "estimate",
    "launches",
    "op_counts",
    "op_report",
    "precision",
    "profile",
    "reset_op_counts",
    "set_precision",
    "trn",
]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    """What brings the lowering with it, which a program that trains may never need."""
    if name == "estimate":
        from .estimation import estimate

        return estimate
    if name == "profile":
        from .profiler import profile

        return profile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
