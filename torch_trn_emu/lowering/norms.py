"""Rows of batch and group norm: what a call normalizes, and with which numbers."""

from math import ceil, prod
from typing import Any

from .call import Call, Target, TensorArg
from .channel_norm import channel_norm
from .channel_norm_backward import channel_norm_backward
from .columns import reduce_columns
from .norm_tiles import Norm
from .op import Lowered
from .planes import Planes

__all__ = ["batch_norm", "batch_norm_backward", "group_norm", "group_norm_backward"]

_EVALUATES = frozenset(("_native_batch_norm_legit_no_training", "_batch_norm_no_update"))
_TRAINS = frozenset(("_batch_norm_with_update",))


_BACKWARD_WIDE = 2048  # elements of each of two operands and two values on the way (chosen)


def _channels(x: TensorArg, target: Target, **options: int) -> tuple[Planes, int]:
    """Channels on partitions, split over the cores; memory as [N, C, ...]."""
    images, channels, pixels = x.shape[0], x.shape[1], prod(x.shape[2:])
    cores = target.cores if channels >= target.cores else 1
    planes = Planes(
        rows=ceil(channels / cores),
        outer=images,
        inner=pixels,
        row_stride=pixels,
        outer_stride=ceil(channels / cores) * pixels,
        **options,
    )
    return planes, cores


def _groups(call: Call, first: int, target: Target, **options: int) -> tuple[Planes, int]:
    """Groups on partitions; images are split over the cores."""
    n, c, pixels, groups = (int(call.argument(first + k)) for k in range(4))
    cores = target.cores if n >= target.cores else 1
    per = c // groups
    planes = Planes(
        rows=groups,
        outer=per,
        inner=pixels,
        row_stride=per * pixels,
        outer_stride=pixels,
        repeats=ceil(n / cores),
        **options,
    )
    return planes, cores


def _options(x: TensorArg, weight: Any, bias: Any) -> dict[str, Any]:
    held = next((t.dtype for t in (weight, bias) if t is not None), "float32")
    return {"weight": weight is not None, "bias": bias is not None, "dtype": x.dtype,
            "parameters": held}  # fmt: skip


def batch_norm(call: Call, target: Target) -> Lowered:
    x, weight, bias = (call.argument(k) for k in range(3))
    if not x.numel:
        return ()
    stats = not call.op.endswith("no_stats")
    rest = list(call.arguments[3 + 2 * stats :])
    if call.name in _EVALUATES or call.name in _TRAINS:
        trains = call.name in _TRAINS
    else:
        trains = bool(rest.pop(0))
    momentum, eps = (*rest, 0.1, 1e-5)[:2] if len(rest) < 2 else rest[:2]
    tracks = stats and call.argument(3) is not None
    planes, cores = _channels(x, target)
    norm = Norm(
        given=not trains,
        momentum=float(momentum) if trains and tracks else None,
        eps=float(eps),
        **_options(x, weight, bias),
    )
    return (channel_norm(planes, norm, chip=target.chip, saves=trains, cores=cores),)


def batch_norm_backward(call: Call, target: Target) -> Lowered:
    x, weight = call.argument(1), call.argument(2)
    if not x.numel:
        return ()
    planes, cores = _channels(x, target, wide=_BACKWARD_WIDE)
    norm = Norm(
        given=not call.argument(7, True),
        eps=float(call.argument(8, 1e-5)),
        **_options(x, weight, None),
    )
    wants = call.argument(9, (True, True, True))
    program = channel_norm_backward(planes, norm, chip=target.chip, wants=wants, cores=cores)
    return (program,)


def group_norm(call: Call, target: Target) -> Lowered:
    x, weight, bias = (call.argument(k) for k in range(3))
    if not x.numel:
        return ()
    planes, cores = _groups(call, 3, target)
    norm = Norm(outer=True, eps=float(call.argument(7, 1e-5)), **_options(x, weight, bias))
    return (channel_norm(planes, norm, chip=target.chip, cores=cores),)


def group_norm_backward(call: Call, target: Target) -> Lowered:
    """The gradients of the parameters are summed over the images by programs of their own."""
    x, weight = call.argument(1), call.argument(4)
    if not x.numel:
        return ()
    planes, cores = _groups(call, 5, target, wide=_BACKWARD_WIDE)
    norm = Norm(outer=True, **_options(x, weight, None))
    wants = call.argument(9, (True, True, True))
    program = channel_norm_backward(planes, norm, chip=target.chip, wants=wants, cores=cores)
    images, channels = call.argument(5), call.argument(6)
    options: dict[str, Any] = {"chip": target.chip, "cores": target.cores}
    total = reduce_columns(1, images, channels, op="add", out_dtype=norm.parameters, **options)
    return (program, *[total] * sum(wants[1:]))
