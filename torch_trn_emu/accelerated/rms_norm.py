"""RMSNorm as one kernel, and its backward: the values of what the CPU makes of it, bit for bit.

The CPU computes in float32 (float64 for float64) and rounds once. Checked on torch 2.13.0:
layer_norm.cpp, rms_norm_composite, and the formulas of autograd for its steps.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..torch_private import fused_rms_norm

__all__ = ["backward", "forward", "shapes"]


def forward(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    """The result, and 1 / rms of each row."""
    return fused_rms_norm(input, list(normalized_shape), weight, eps)


def shapes(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    """The results' shapes, on `meta`."""
    kept = input.shape[: input.dim() - len(normalized_shape)]
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    rstd = input.new_empty((*kept, *(1 for _ in normalized_shape)), dtype=wide)
    return torch.empty_like(input), rstd


def backward(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    rstd: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and weight; `rstd` has a value for each row."""
    narrow = input.dtype != torch.float64
    g, x = (t.float() if narrow else t for t in (grad_out, input))
    kept = input.dim() - len(normalized_shape)
    r = rstd.to(x.dtype).reshape(*input.shape[:kept], *(1 for _ in normalized_shape))
    grad_input = grad_weight = None
    if weight is not None and output_mask[1]:
        grad_weight = (g * (x * r)).sum_to_size(weight.shape).to(weight.dtype)
    if output_mask[0]:
        scaled = g if weight is None else g * weight
        slope = -0.5 * (scaled * x).sum_to_size(r.shape) * r.pow(3)
        mean = slope.expand(x.shape) / prod(normalized_shape)
        grad_input = (scaled * r + mean * (2 * x)).to(input.dtype)
    return grad_input, grad_weight
