"""Dropout as one kernel, by its CUDA name. The numbers are those of the device's generator."""

import torch
from torch import Tensor

__all__ = ["fused_dropout", "masked_scale"]


def fused_dropout(
    self: Tensor, p: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """`p` is how likely an element is kept. Gives the result and the mask, uint8."""
    if not 0 < p < 1:
        raise ValueError(f"_fused_dropout keeps with a probability in (0, 1), got {p}")
    mask = torch.empty(self.shape, dtype=torch.uint8).bernoulli_(p, generator=generator)
    return masked_scale(self, mask, 1 / p), mask


def masked_scale(self: Tensor, mask: Tensor, scale: float) -> Tensor:
    wide = self if self.dtype == torch.float64 else self.float()
    return (wide * mask * scale).to(self.dtype)
