"""Rows of batch and group norm: what a call normalizes, and with which numbers."""

from dataclasses import replace
from math import ceil, prod
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled, made
from ..isa import dense_strides
from ..kernels.batch_norm.backward import channel_norm_backward
from ..kernels.batch_norm.forward import channel_norm
from ..kernels.batch_norm.tiles import Norm
from ..kernels.limits import P
from ..kernels.planes import Planes
from ..kernels.pointwise import copy, tensor_scalar, tensor_tensor
from ..kernels.reduce_leading import columns_reduced
from .elementwise import elementwise
from .faster import faster
from .op import Lowered
from .reductions import over_normalized

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "channels_of",
    "group_norm",
    "group_norm_backward",
]

_EVALUATES = frozenset(("_native_batch_norm_legit_no_training", "_batch_norm_no_update"))
_TRAINS = frozenset(("_batch_norm_with_update",))


_LONG = 8192  # elements of a group that may lie on several partitions (chosen)
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
    planes, cores = _groups(call, 3, target)
    norm = Norm(outer=True, eps=float(call.argument(7, 1e-5)), **_options(x, weight, bias))
    held = {"x": x, "weight": weight, "bias": bias}
    held |= dict(zip(("y", "mean", "rstd"), call.results, strict=False))
    ways: list[Lowered] = [(labelled(channel_norm(planes, norm, cores=cores), held),)]
    if planes.rows * planes.repeats < P and planes.outer * planes.inner >= _LONG:
        ways.append(_spread_groups(call, norm.eps, target))
    return faster(ways, target)


def _spread_groups(call: Call, eps: float, target: Target) -> Lowered:
    """Groups that are too few for the partitions: their moments as those of long rows, then a
    factor and a term for each channel of an image.
    """
    x, weight, bias = (call.argument(k) for k in range(3))
    n, channels, pixels, groups = (int(call.argument(k)) for k in range(3, 7))
    per, y = channels // groups, call.results[0]
    mean, rstd = (
        t or made(name, (n, groups), "float32")
        for t, name in zip(call.results[1:], ("mean", "rstd"), strict=True)
    )
    rows = _shaped(x, (n * groups, per * pixels))
    moments = Call("aten::native_layer_norm", (rows, rows.shape[1:], None, None, eps),
                   (None, mean, rstd))  # fmt: skip
    stats = over_normalized("layer_norm", {"x": 0, "w": 2, "b": 3})(moments, target)
    each = (n, groups, per)
    scale, shift = (made(name, each, "float32") for name in ("scale", "shift"))
    mean, rstd = (_shaped(t, (n, groups, 1)) for t in (mean, rstd))
    factors = [rstd] if weight is None else [rstd, _shaped(weight, (groups, per))]
    terms = [mean, scale] if bias is None else [mean, scale, _shaped(bias, (groups, per))]
    scaled = [tensor_tensor("multiply", 0, 1)] if weight is not None else [copy()]
    below = [tensor_tensor("multiply", 0, 1), tensor_scalar(-1, op0="multiply", imm0=-1.0)]
    below += [tensor_tensor("add", -1, 2)] if bias is not None else []
    of_planes = [_shaped(t, (n * channels, 1)) for t in (scale, shift)]
    both = [tensor_tensor("multiply", 0, 1), tensor_tensor("add", -1, 2)]
    planes = (n * channels, pixels)
    return (
        *stats,
        elementwise("scale", scaled, factors, scale, target),
        elementwise("shift", below, terms, shift, target),
        elementwise("norm", both, [_shaped(x, planes), *of_planes], _shaped(y, planes), target),
    )


def _shaped(t: TensorArg, shape: tuple[int, ...]) -> TensorArg:
    """A contiguous tensor in another shape."""
    strides = dense_strides(shape)
    views = tuple(replace(v, shape=shape, strides=strides) for v in t.views) if t.contiguous else ()
    return replace(t, shape=shape, strides=strides, views=views)


def group_norm_backward(call: Call, target: Target) -> Lowered:
    """The gradients of the parameters are summed over the images by programs of their own."""
    x, weight = call.argument(1), call.argument(4)
    planes, cores = _groups(call, 5, target, wide=_BACKWARD_WIDE)
    norm = Norm(outer=True, **_options(x, weight, None))
    wants = call.argument(9, (True, True, True))
    program = channel_norm_backward(planes, norm, wants=wants, cores=cores)
    images, channels = call.argument(5), call.argument(6)
    each = {n: made(n, (images, channels), "float32") for n in ("dw", "db")}
    held = {n: call.argument(k) for k, n in enumerate(("g", "x", "mean", "rstd", "weight"))}
    held |= {**each, "dx": call.results[0] if call.results else None}
    sums = [
        columns_reduced(each[n], call.results[k], 1, images, channels, target, op="add")
        for k, n in ((1, "dw"), (2, "db"))
        if wants[k]
    ]
    return (labelled(program, held), *sums)
