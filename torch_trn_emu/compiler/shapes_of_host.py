"""Sizes and strides of a few operators' results, as the host's kernels make them.

Torch's fake kernels know other devices or no memory format: a graph would expect other tensors
than it gets. Checked on torch 2.13.0.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..torch_private import register_fake, suggest_memory_format, tree_leaves, tree_map
from .move_to_host import host_inputs, is_trn

__all__ = ["register_shapes"]

aten = torch.ops.aten

# Gradients in the memory format of what was padded; torch's are contiguous.
_PADDED = [
    getattr(aten, f"{kind}_pad{rank}d_backward").default
    for kind, ranks in (("reflection", (2,)), ("replication", (2, 3)))
    for rank in ranks
]
# What the CPU keeps for the backward pass: torch takes trn for a CUDA device.
_BAGS = [aten._embedding_bag.default, aten._embedding_bag_forward_only.default]


def _padded(mode: Any, func: Any, grad: Tensor, x: Tensor, padding: Any) -> Any:
    with mode:  # Inductor asks for a tensor of the host
        return torch.empty_like(x, memory_format=suggest_memory_format(x))


def _bags(mode: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
    devices = [t.device for t in tree_leaves((args, kwargs)) if is_trn(t)]
    if not devices:
        return NotImplemented
    args, kwargs = tree_map(lambda value: host_inputs([value])[0], (args, kwargs))

    def back(made: Tensor) -> Tensor:
        sizes, strides = made.shape, made.stride()
        return torch.empty_strided(sizes, strides, dtype=made.dtype, device=devices[0])

    with mode:
        return tree_map(back, func(*args, **kwargs))


@cache
def register_shapes() -> None:
    """Before Dynamo traces: fake tensors remember what they found."""
    for kernel, operators in ((_padded, _PADDED), (_bags, _BAGS)):
        for op in operators:
            register_fake(op, kernel)
