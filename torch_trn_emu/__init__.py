"""A PyTorch device, `trn`, that emulates AWS Trainium on an ordinary host.

`import torch` loads this package through its entry point; nothing else needs importing.
"""


def _autoload() -> None:
    """Called at the end of `import torch`. The work is done by importing this package."""


import torch  # noqa: E402  _autoload must exist before: torch calls it while importing

from . import trn  # noqa: E402  registers the device

__all__ = ["launches", "op_counts", "reset_op_counts", "trn"]

from .trn.launches import launches, op_counts, reset_op_counts  # noqa: E402

__version__ = "0.1.0.dev0"
del torch
