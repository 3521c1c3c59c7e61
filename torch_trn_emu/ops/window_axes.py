"""Axes of windowed operators from the numbers of a call, which has one for all or one for each."""

from collections.abc import Sequence
from typing import Any

from ..kernels.windows import Axis

__all__ = ["in_space", "per_axis", "window_axes"]


def per_axis(given: Any, rank: int, default: int) -> tuple[int, ...]:
    """A number for each dimension, of a number, a tuple, or nothing."""
    values = tuple(given) if isinstance(given, tuple) else (given,) if given is not None else ()
    values = values or (default,)
    return values * rank if len(values) == 1 else values


def window_axes(
    sizes: Sequence[int], outs: Sequence[int], kernel: Sequence[int], stride: Any = None,
    padding: Any = None, dilation: Any = None,
) -> list[Axis]:  # fmt: skip
    """An axis for each dimension; without strides windows lie beside each other."""
    rank = len(kernel)
    steps = per_axis(stride, rank, 0)
    steps = steps if any(steps) else tuple(kernel)
    pads, gaps = per_axis(padding, rank, 0), per_axis(dilation, rank, 1)
    return [
        Axis(size=n, out=o, kernel=k, stride=s, padding=p, dilation=d)
        for n, o, k, s, p, d in zip(sizes, outs, kernel, steps, pads, gaps, strict=True)
    ]


def in_space(axes: Sequence[Axis]) -> tuple[Axis, Axis, Axis]:
    """Depth, height and width; what is not there has size 1."""
    depth, height, width = [Axis(size=1, out=1, kernel=1)] * (3 - len(axes)) + list(axes)
    return depth, height, width
