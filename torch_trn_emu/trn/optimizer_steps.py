"""While an optimizer steps, its passes over lists of tensors are kept and run together.

Each foreach operator would read and write all parameters again. See csrc/aten/list_passes.h.
"""

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from .. import _C

__all__ = ["collect_list_passes"]


def collect_list_passes() -> None:
    """Do so in every step of every optimizer, once for the process."""
    register_optimizer_step_pre_hook(_begin)
    register_optimizer_step_post_hook(_end)


def _begin(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        _C.collect_list_passes(True)


def _end(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        _C.collect_list_passes(False)
