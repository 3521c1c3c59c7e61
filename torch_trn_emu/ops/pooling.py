"""Rows of pooling: windows, strides and paddings from a call."""

from dataclasses import replace
from math import prod
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..isa import Program, fits
from ..kernels.pooling.adaptive import (
    LEAST_READ,
    Bands,
    adaptive_average,
    adaptive_average_backward,
)
from ..kernels.pooling.backward import pool_backward
from ..kernels.pooling.forward import pool
from ..kernels.pooling.tiles import Pool
from ..kernels.windows import Axis
from .faster import faster
from .op import Lowered, Lowering
from .window_axes import in_space, per_axis, window_axes

__all__ = ["adaptive_pool", "average_pool", "max_pool"]


def _rank(call: Call) -> int:
    return next((int(d) for d in "123" if f"pool{d}d" in call.name), 2)


def _sides(call: Call) -> tuple[TensorArg, TensorArg]:
    """The input and the output; a gradient's call has that of the output first."""
    if call.name.endswith("_backward"):
        return call.argument(1), call.argument(0)
    return call.argument(0), call.out


def _labelled(call: Call, program: Program) -> Lowered:
    """With what the buffers stand for; the places of a maximum follow the other arguments."""
    held: dict[str, Any] = dict(zip(("y", "indices"), call.outputs, strict=False))
    held["x"] = call.argument(0)
    if call.name.endswith("_backward"):
        at = 2 if "adaptive" in call.name else 7
        held = {"g": call.argument(0), "dx": call.out, "indices": call.argument(at)}
    return (labelled(program, held),)


def _pooled(call: Call, x: TensorArg, axes: list[Axis], target: Target, **how: Any) -> Lowered:
    """`how` is what `Pool` takes beside axes and dtype."""
    backward = call.name.endswith("_backward")
    spec = Pool(axes=in_space(axes), dtype=x.dtype, **how)
    planes = x.numel // prod(a.size for a in axes)
    make = pool_backward if backward else pool
    return _labelled(call, make(planes, spec, cores=target.cores))


def _window(call: Call, *, gaps: bool) -> tuple[TensorArg, list[Axis], int]:
    """The input, its axes, and where the call's kernel stands; with `gaps`, its dilation too."""
    rank, at = _rank(call), 2 if call.name.endswith("_backward") else 1
    x, y = _sides(call)
    kernel = per_axis(call.argument(at), rank, 1)
    stride, padding = call.argument(at + 1), call.argument(at + 2)
    dilation = call.argument(at + 3) if gaps else None
    sizes = x.shape[-rank:], y.shape[-rank:], kernel
    return x, window_axes(*sizes, stride, padding, dilation), at


def max_pool(call: Call, target: Target) -> Lowered:
    x, axes, _ = _window(call, gaps=True)
    indices = not call.name.endswith("_backward") and len(call.outputs) > 1
    return _pooled(call, x, axes, target, op="max", indices=indices)


def average_pool(call: Call, target: Target) -> Lowered:
    x, axes, at = _window(call, gaps=False)
    counting = axes
    if call.argument(at + 4, True):  # the padding counts: the input is as long as it is padded
        counting = [replace(a, size=a.size + 2 * a.padding, padding=0) for a in axes]
    even = all([taps for taps, _ in a.counts(0, a.out)] == [a.kernel] for a in counting)
    divisor = float(call.argument(at + 5) or (prod(a.kernel for a in axes) if even else 0))
    how: dict[str, Any] = {"op": "add", "divisor": divisor, "counting": in_space(counting)}
    return _pooled(call, x, axes, target, **how)


def _rows_first(
    x: TensorArg, size: tuple[int, ...], out: tuple[int, ...], target: Target, *, backward: bool
) -> Program:
    """Planes whole in SBUF, or in as many bands as it takes."""
    make = adaptive_average_backward if backward else adaptive_average
    planes = x.numel // prod(size)
    most = size if backward else out
    read, least = (LEAST_READ, LEAST_READ) if backward else (size[0], 1)
    bands = Bands(rows=most[0], columns=most[1], read=read, least=least)
    while True:
        program = make(planes, size, out, dtype=x.dtype, bands=bands, cores=target.cores)
        smaller = bands.smaller()
        if smaller is None or fits(program, target.chip):
            return program
        bands = smaller


def adaptive_pool(op: str) -> Lowering:
    """Windows that share the input between the outputs."""

    def lower(call: Call, target: Target) -> Lowered:
        rank, backward = _rank(call), call.name.endswith("_backward")
        x, y = _sides(call)
        sizes = x.shape[-rank:], y.shape[-rank:]
        pairs = list(zip(*sizes, strict=True))
        uneven = any(size % out for size, out in pairs)
        ways: list[Lowered] = []
        if uneven and (op == "max" or rank != 2):
            raise KeyError(f"adaptive windows of several sizes in {call.name}")
        if op == "add" and rank == 2:
            ways.append(_labelled(call, _rows_first(x, *sizes, target, backward=backward)))
        if uneven:
            return ways[0]
        axes = [Axis(size=n, out=out, kernel=n // out, stride=n // out) for n, out in pairs]
        how: dict[str, Any] = {"op": op, "divisor": float(prod(a.kernel for a in axes))}
        pooled = _pooled(call, x, axes, target, indices=op == "max" and not backward, **how)
        ways = [way for way in ways if fits(way[0], target.chip)]
        return faster([pooled, *ways], target)

    return lower
