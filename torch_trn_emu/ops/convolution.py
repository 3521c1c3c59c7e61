"""Rows of convolutions: which program computes a call, and a core's share of it."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil, prod
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..isa import Program
from ..kernels.channel_sums import channel_sums
from ..kernels.convolution.depthwise import depthwise, depthwise_input, depthwise_weight
from ..kernels.convolution.forward import conv
from ..kernels.convolution.input import conv_input
from ..kernels.convolution.shape import Convolution
from ..kernels.convolution.weight import conv_weight
from .batch_norm import channels_of
from .faster import faster
from .op import Lowered
from .products import format_of
from .window_axes import in_space, window_axes

__all__ = ["convolution", "convolution_backward"]

FEW = 8  # filters of a single channel that the Vector engine may compute in less time (chosen)
_Make = Callable[..., Program]


def _described(
    x: TensorArg, w: TensorArg, y: TensorArg, window: tuple[Any, ...], transposed: bool,
    groups: int, call: Call, target: Target,
) -> Convolution:  # fmt: skip
    """The forward pass from x to y, or of the transposed one: from its result to its input."""
    big, small = (y, x) if transposed else (x, y)
    stride, padding, dilation = (w if isinstance(w, (int, tuple)) else None for w in window)
    sizes = big.shape[2:], small.shape[2:], w.shape[2:]
    axes = in_space(window_axes(*sizes, stride or 1, padding, dilation))
    # Of the padding nothing counts.
    inside = prod(sum(taps * n for taps, n in axis.counts(0, axis.out)) for axis in axes)
    return Convolution(
        batch=x.shape[0],
        channels=w.shape[1],
        filters=w.shape[0] // groups,
        axes=axes,
        groups=groups,
        dtype=x.dtype,
        compute=format_of(call, target, x.dtype, "convolution"),
        flops=2.0 * x.shape[0] * w.shape[0] * w.shape[1] * inside,
    )


def _shared(spec: Convolution, cores: int, *, filters: bool) -> Convolution:
    """One core's part: of the batch, else of the groups, else of what the result has."""
    if spec.batch >= cores:
        return replace(spec, batch=ceil(spec.batch / cores))
    if spec.groups >= cores:
        return replace(spec, groups=ceil(spec.groups / cores))
    if filters:
        return replace(spec, filters=ceil(spec.filters / cores))
    return replace(spec, channels=ceil(spec.channels / cores))


def _made(
    spec: Convolution, target: Target, by_array: _Make, by_taps: _Make, transposed: bool
) -> Program:
    """By the array, or tap by tap where a group has one channel; of one group the faster one."""
    options: dict[str, Any] = {"chip": target.chip, "cores": target.cores}
    if transposed or spec.channels > 1 or (spec.groups == 1 and spec.filters > FEW):
        return by_array(spec, **options)
    ways = (by_array, by_taps) if spec.groups == 1 else (by_taps,)
    return faster([(make(spec, **options),) for make in ways], target)[0]


def _batched(t: TensorArg, rank: int) -> TensorArg:
    """With a batch dimension."""
    if len(t.shape) == rank + 2:
        return t
    return replace(t, shape=(1, *t.shape), strides=(t.numel, *t.strides))


def convolution(call: Call, target: Target) -> Lowered:
    x, w, bias = (call.argument(k) for k in range(3))
    rank = len(w.shape) - 2
    x, out = _batched(x, rank), _batched(call.out, rank)
    if call.name in ("conv1d", "conv2d", "conv3d"):  # the composite's own arguments
        window, transposed, groups = call.arguments[3:6], False, int(call.argument(6, 1))
    else:
        window, transposed = call.arguments[3:6], bool(call.argument(6, False))
        groups = int(call.argument(8, 1) or 1)
    spec = _described(x, w, out, window, transposed, groups, call, target)
    spec = replace(spec, bias=bias.dtype if bias is not None else "")
    whole, spec = spec, _shared(spec, target.cores, filters=not transposed)
    program = _made(spec, target, conv_input if transposed else conv, depthwise, transposed)
    held = {"in": x, "g": x, "weight": w, "bias": bias, "out": out, "dx": out}
    return (labelled(program, held, outer=_outer(whole, spec)),)


def _outer(whole: Convolution, share: Convolution) -> dict[str, int]:
    """How cores share the buffers: those of images first, then those that a core has part of."""
    if share.batch != whole.batch:
        return {}
    images = dict.fromkeys(("in", "g", "x", "out", "dx"), whole.batch)
    inside = whole.channels != share.channels  # of each filter, which all cores have
    return images | ({"weight": whole.groups * whole.filters} if inside else {})


def convolution_backward(call: Call, target: Target) -> Lowered:
    """The gradients that the mask asks for, one program each."""
    g, x, w = (call.argument(k) for k in range(3))
    if not x.numel:
        return ()
    at = 3 if call.name.endswith("overrideable") else 4
    window, transposed = call.arguments[at : at + 3], bool(call.argument(at + 3, False))
    groups = int(call.argument(at + 5, 1) or 1)
    mask = call.argument(at + 6, (True, True, True))
    spec = _described(x, w, g, window, transposed, groups, call, target)
    programs: list[Program] = []
    results = dict(zip(("dx", "dw", "db"), call.results, strict=False))
    held = {"g": g, "x": x, "weight": w, **results}
    if transposed:  # a convolution of the result's gradient, and its factors change places
        held |= {"in": g, "out": results.get("dx")}
    if mask[0]:
        share = _shared(spec, target.cores, filters=transposed)
        by_array = conv if transposed else conv_input
        program = _made(share, target, by_array, depthwise_input, transposed)
        programs.append(labelled(program, held, outer=_outer(spec, share)))
    if mask[1]:  # every core needs all images, or adds its sums to the others'
        cut = replace(spec, batch=1) if spec.batch >= target.cores else spec
        share = replace(_shared(cut, target.cores, filters=True), batch=spec.batch)
        program = _made(share, target, conv_weight, depthwise_weight, transposed)
        factors = {**held, "g": x, "x": g} if transposed else held
        outer = _outer(spec, share)
        programs.append(labelled(program, factors, outer=outer))
    if mask[2]:
        planes, cores = channels_of(g, target)
        sums = channel_sums(planes, dtype=g.dtype, cores=cores)
        programs.append(labelled(sums, held, outer={"g": g.shape[0]}))
    return tuple(programs)
