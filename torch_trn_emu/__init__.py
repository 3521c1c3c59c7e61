"""A PyTorch device, `trn`, that emulates AWS Trainium on an ordinary host.

`import torch` loads this package through its entry point; nothing else needs importing.
"""

# ruff: noqa: E402


def _autoload() -> None:
    """Called at the end of `import torch`. The work is done by importing this package."""


# `_autoload` stands first: this import of torch may call it while the package is half imported.

from . import trn
from .precision import current_precision, precision, set_precision
from .trn.launches import launches, op_counts, reset_op_counts

__all__ = [
    "current_precision",
    "launches",
    "op_counts",
    "precision",
    "reset_op_counts",
    "set_precision",
    "trn",
]

__version__ = "0.1.0.dev0"
