"""What torch.multiprocessing does with trn tensors. Checked on torch 2.13.0."""

from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.multiprocessing.reductions import reduce_storage

from ..errors import Unsupported
from ..settings import DEVICE_TYPE
from ..torch_private import StorageBase

__all__ = ["register_reductions"]


def register_reductions() -> None:
    """Let a trn tensor that is sent to another process say what to do instead."""
    ForkingPickler.register(torch.UntypedStorage, _reduce_storage)


def _reduce_storage(storage: torch.UntypedStorage) -> Any:
    base: Any = StorageBase  # an alias may change what the class itself says
    device: torch.device = base.device.__get__(storage)
    if device.type == DEVICE_TYPE:
        raise Unsupported(
            "The emulated HBM belongs to one process: a trn tensor cannot be shared with another. "
            'Send tensor.cpu(), and move it with .to("trn") on the other side.'
        )
    return reduce_storage(storage)
