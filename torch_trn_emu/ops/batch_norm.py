"""Rows of batch and group norm: what a call normalizes, and with which numbers."""

from math import ceil, prod
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled, made
from ..isa import Program
from ..kernels.batch_norm.backward import channel_norm_backward
from ..kernels.batch_norm.forward import channel_norm
from ..kernels.batch_norm.tiles import Norm
from ..kernels.planes import Planes
from ..kernels.reduce_leading import columns_outer, reduce_columns
from .op import Lowered

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "channels_of",
    "group_norm",
    "group_norm_backward",
]

_EVALUATES = frozenset(("_native_batch_norm_legit_no_training", "_batch_norm_no_update"))
_TRAINS = frozenset(("_batch_norm_with_update",))


_BACKWARD_WIDE = 2048  # elements of each of two operands and two values on the way (chosen)


def channels_of(x: TensorArg, target: Target, **options: int) -> tuple[Planes, int]:
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
    planes, cores = channels_of(x, target)
    norm = Norm(
        given=not trains,
        momentum=float(momentum) if trains and tracks else None,
        eps=float(eps),
        **_options(x, weight, bias),
    )
    program = channel_norm(planes, norm, saves=trains, cores=cores)
    names = ("x", "weight", "bias", "running_mean", "running_var")[: 5 if stats else 3]
    held = {n: call.argument(k) for k, n in enumerate(names)}
    held |= dict(zip(("y", "mean", "rstd"), call.results, strict=False))
    held |= {f"new {n}": held[n] for n in names[3:]}
    return (labelled(program, held, outer=dict.fromkeys(("x", "y"), x.shape[0])),)


def batch_norm_backward(call: Call, target: Target) -> Lowered:
    x, weight = call.argument(1), call.argument(2)
    if not x.numel:
        return ()
    planes, cores = channels_of(x, target, wide=_BACKWARD_WIDE)
    norm = Norm(
        given=not call.argument(7, True),
        eps=float(call.argument(8, 1e-5)),
        **_options(x, weight, None),
    )
    wants = call.argument(9, (True, True, True))
    program = channel_norm_backward(planes, norm, wants=wants, cores=cores)
    places = {"g": 0, "x": 1, "weight": 2, "mean": 3 if norm.given else 5, "rstd": 6, "variance": 4}
    held = {n: call.argument(k) for n, k in places.items()}
    held |= dict(zip(("dx", "dw", "db"), call.results, strict=False))
    return (labelled(program, held, outer=dict.fromkeys(("g", "x", "dx"), x.shape[0])),)


def group_norm(call: Call, target: Target) -> Lowered:
    x, weight, bias = (call.argument(k) for k in range(3))
    if not x.numel:
        return ()
    planes, cores = _groups(call, 3, target)
    norm = Norm(outer=True, eps=float(call.argument(7, 1e-5)), **_options(x, weight, bias))
    held = {"x": x, "weight": weight, "bias": bias}
    held |= dict(zip(("y", "mean", "rstd"), call.results, strict=False))
    return (labelled(channel_norm(planes, norm, cores=cores), held),)


def group_norm_backward(call: Call, target: Target) -> Lowered:
    """The gradients of the parameters are summed over the images by programs of their own."""
    x, weight = call.argument(1), call.argument(4)
    if not x.numel:
        return ()
    planes, cores = _groups(call, 5, target, wide=_BACKWARD_WIDE)
    norm = Norm(outer=True, **_options(x, weight, None))
    wants = call.argument(9, (True, True, True))
    program = channel_norm_backward(planes, norm, wants=wants, cores=cores)
    images, channels = call.argument(5), call.argument(6)
    each = {n: made(n, (images, channels), "float32") for n in ("dw", "db")}
    held = {n: call.argument(k) for k, n in enumerate(("g", "x", "mean", "rstd", "weight"))}
    held |= {**each, "dx": call.results[0] if call.results else None}
    sums = [
        _summed(each[n], call.results[k], images, channels, norm.parameters, target)
        for k, n in ((1, "dw"), (2, "db"))
        if wants[k]
    ]
    return (labelled(program, held), *sums)


def _summed(
    each: TensorArg, out: Any, images: int, channels: int, dtype: str, target: Target
) -> Program:
    """The sum over images of a parameter's gradient."""
    options: dict[str, Any] = {"chip": target.chip, "cores": target.cores, "out_dtype": dtype}
    program = reduce_columns(1, images, channels, op="add", **options)
    return labelled(program, {"in": each, "out": out}, outer=columns_outer(1, images, target.cores))
