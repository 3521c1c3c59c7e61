"""The backward of RMSNorm as one kernel, for callers of aten's name; float32 inside."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["backward"]


def backward(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    rstd: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and weight; `rstd` has a value for each row."""
    inner = prod(normalized_shape)
    narrow = input.dtype != torch.float64
    g, x = ((t.float() if narrow else t).reshape(-1, inner) for t in (grad_out, input))
    r = rstd.to(x.dtype).reshape(-1, 1)
    normalized = x * r
    scaled = g if weight is None else g * weight.to(x.dtype).reshape(1, -1)
    slope = (scaled * normalized).mean(1, keepdim=True)
    grad_input = ((scaled - normalized * slope) * r).reshape(input.shape).to(input.dtype)
    grad_weight = None
    if weight is not None and output_mask[1]:
        grad_weight = (g * normalized).sum(0).reshape(weight.shape).to(weight.dtype)
    return grad_input if output_mask[0] else None, grad_weight
