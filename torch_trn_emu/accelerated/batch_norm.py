"""Batch norm in pieces, which `torch.nn.SyncBatchNorm` puts together over processes.

Dimension 1 has the channels. Statistics are float32 for inputs of 16 bits. Checked on torch 2.13.0.
"""

import torch
from torch import Tensor

from .products import store

__all__ = [
    "backward_elemt",
    "backward_reduce",
    "elemt",
    "elemt_out",
    "gather_stats",
    "gather_stats_with_counts",
    "stats",
]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _rows(x: Tensor) -> list[int]:
    """The dimensions that are summed for a channel."""
    if x.dim() < 2:
        raise ValueError(f"batch norm takes inputs of 2 dimensions and more, got {x.dim()}")
    return [0, *range(2, x.dim())]


def _spread(channels: Tensor, x: Tensor) -> Tensor:
    return channels.reshape(1, -1, *(1,) * (x.dim() - 2))


def stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The mean and the reciprocal deviation of each channel."""
    x = _wide(input)
    variance, mean = torch.var_mean(x, _rows(x), correction=0)
    return mean, torch.rsqrt(variance + eps)


def elemt(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
) -> Tensor:
    x = _wide(input)
    made = (x - _spread(mean, x)) * _spread(invstd, x)
    if weight is not None:
        made = made * _spread(weight, x)
    if bias is not None:
        made = made + _spread(bias, x)
    return made.to(input.dtype)


def elemt_out(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
    *,
    out: Tensor,
) -> Tensor:
    return store(elemt(input, weight, bias, mean, invstd, eps), out)


def gather_stats(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    count: int,
) -> tuple[Tensor, Tensor]:
    counts = torch.full((mean.shape[0],), float(count), dtype=mean.dtype)
    given = (running_mean, running_var, momentum, eps)
    return gather_stats_with_counts(input, mean, invstd, *given, counts)


def gather_stats_with_counts(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Join statistics [processes, channels]; the running variance takes the unbiased one."""
    weights = counts.to(mean.dtype).reshape(-1, 1)
    total = weights.sum()
    joined = (mean * weights).sum(0) / total
    own = invstd.pow(-2) - eps
    squares = ((own + (mean - joined).square()) * weights).sum(0)
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(momentum * joined.to(running_mean.dtype))
    if running_var is not None:
        unbiased = squares / (total - 1)
        running_var.mul_(1 - momentum).add_(momentum * unbiased.to(running_var.dtype))
    return joined, torch.rsqrt(squares / total + eps)


def backward_reduce(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor | None, ...]:
    """The sums of dy and of dy (x - mean), and the gradients of weight and bias, as asked for."""
    g, x = _wide(grad_out), _wide(input)
    rows = _rows(x)
    sum_dy = g.sum(rows)
    sum_dy_xmu = (g * (x - _spread(mean, x))).sum(rows)
    dtype = sum_dy.dtype if weight is None else weight.dtype
    return (
        sum_dy if input_g else None,
        sum_dy_xmu if input_g else None,
        (sum_dy_xmu * invstd).to(dtype) if weight_g else None,
        sum_dy.to(dtype) if bias_g else None,
    )


def backward_elemt(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    g, x = _wide(grad_out), _wide(input)
    elements = count.sum().to(x.dtype)
    slope = invstd.square() * (sum_dy_xmu / elements)
    made = g - _spread(sum_dy / elements, x) - (x - _spread(mean, x)) * _spread(slope, x)
    factor = invstd if weight is None else invstd * weight
    return (made * _spread(factor, x)).to(input.dtype)
