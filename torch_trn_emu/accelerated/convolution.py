"""Convolutions of one channel a group by their CUDA names."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .products import store

__all__ = ["depthwise", "depthwise_out"]


def depthwise(
    self: Tensor,
    weight: Tensor,
    kernel_size: Sequence[int],
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A product for each tap, so no format of the Tensor engine: computed as the host does."""
    if tuple(kernel_size) != tuple(weight.shape[2:]):
        raise ValueError(f"kernel_size {list(kernel_size)} of a weight {tuple(weight.shape)}")
    nowhere = [0] * len(kernel_size)
    return torch.convolution(
        self, weight, bias, stride, padding, dilation, False, nowhere, self.shape[1]
    )


def depthwise_out(
    self: Tensor,
    weight: Tensor,
    kernel_size: Sequence[int],
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    out: Tensor,
) -> Tensor:
    return store(depthwise(self, weight, kernel_size, bias, stride, padding, dilation), out)
