"""Rows of pooling: windows, strides and paddings from a call."""

from collections.abc import Callable
from math import prod

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..kernels.pooling.adaptive import adaptive_average, adaptive_average_backward
from ..kernels.pooling.backward import pool_backward
from ..kernels.pooling.forward import pool
from ..kernels.pooling.tiles import Pool
from ..kernels.windows import Axis
from .op import Lowered, Lowering
from .window_axes import in_space, per_axis, window_axes

__all__ = ["adaptive_pool", "adaptive_pool_backward", "average_pool", "max_pool"]


def _rank(call: Call) -> int:
    return next((int(d) for d in "123" if f"pool{d}d" in call.name), 2)


def _planes(x: TensorArg, axes: list[Axis]) -> int:
    return x.numel // max(1, prod(a.size for a in axes))


def _sides(call: Call) -> tuple[TensorArg, TensorArg]:
    """The input and the output; a gradient's call has that of the output first."""
    if call.name.endswith("_backward"):
        return call.argument(1), call.argument(0)
    return call.argument(0), call.out


def _windowed(describe: Callable[[Call, int, list[Axis], TensorArg], Pool], gaps: bool) -> Lowering:
    """`describe` says what is done; its integer is where the call's kernel stands.

    gaps  whether a dilation comes after the padding
    """

    def lower(call: Call, target: Target) -> Lowered:
        backward = call.name.endswith("_backward")
        rank, at = _rank(call), 2 if backward else 1
        x, y = _sides(call)
        kernel = per_axis(call.argument(at), rank, 1)
        stride, padding = call.argument(at + 1), call.argument(at + 2)
        dilation = call.argument(at + 3) if gaps else None
        sizes = x.shape[-rank:], y.shape[-rank:], kernel
        axes = window_axes(*sizes, stride, padding, dilation)
        make = pool_backward if backward else pool
        program = make(_planes(x, axes), describe(call, at, axes, x), cores=target.cores)
        return (labelled(program, _held(call)),)

    return lower


def _held(call: Call) -> dict[str, TensorArg]:
    """What the buffers stand for; the places of a maximum follow the other arguments."""
    if call.name.endswith("_backward"):
        at = 2 if "adaptive" in call.name else 7
        found = {"indices": call.argument(at)} if "max" in call.name else {}
        return {"g": call.argument(0), "dx": call.out, **found}
    return {"x": call.argument(0), **dict(zip(("y", "indices"), call.outputs, strict=False))}


def _greatest(call: Call, at: int, axes: list[Axis], x: TensorArg) -> Pool:
    indices = not call.name.endswith("_backward") and len(call.outputs) > 1
    return Pool(op="max", axes=in_space(axes), indices=indices, dtype=x.dtype)


def _mean(call: Call, at: int, axes: list[Axis], x: TensorArg) -> Pool:
    counts_padding, divisor = call.argument(at + 4, True), call.argument(at + 5)
    # Counting the padding, the input is as long as it is padded.
    counting = [
        Axis(size=a.size + 2 * a.padding, out=a.out, kernel=a.kernel, stride=a.stride)
        if counts_padding
        else a
        for a in axes
    ]
    even = all([taps for taps, _ in a.counts(0, a.out)] == [a.kernel] for a in counting)
    divided = float(divisor or (prod(a.kernel for a in axes) if even else 0))
    return Pool(
        op="add", axes=in_space(axes), divisor=divided, counting=in_space(counting), dtype=x.dtype
    )


max_pool = _windowed(_greatest, gaps=True)
average_pool = _windowed(_mean, gaps=False)


def _even_windows(x: TensorArg, y: TensorArg, rank: int) -> list[Axis] | None:
    """Windows of one size, if the sizes divide."""
    pairs = list(zip(x.shape[-rank:], y.shape[-rank:], strict=True))
    if any(size % out for size, out in pairs):
        return None
    return [Axis(size=n, out=out, kernel=n // out, stride=n // out) for n, out in pairs]


def _adaptive(op: str, *, backward: bool) -> Lowering:
    def lower(call: Call, target: Target) -> Lowered:
        rank = _rank(call)
        x, y = _sides(call)
        axes = _even_windows(x, y, rank)
        if axes is None:
            if op == "max" or rank != 2:
                raise KeyError(f"adaptive windows of several sizes in {call.name}")
            planes = x.numel // prod(x.shape[-2:])
            make = adaptive_average_backward if backward else adaptive_average
            sizes = x.shape[-2:], y.shape[-2:]
            program = make(planes, *sizes, dtype=x.dtype, cores=target.cores)
            return (labelled(program, _held(call)),)
        spec = Pool(
            op=op, axes=in_space(axes), divisor=float(prod(a.kernel for a in axes)),
            indices=op == "max" and not backward, dtype=x.dtype,
        )  # fmt: skip
        apply = pool_backward if backward else pool
        return (labelled(apply(_planes(x, axes), spec, cores=target.cores), _held(call)),)

    return lower


def adaptive_pool(op: str) -> Lowering:
    """Windows that share the input between the outputs."""
    return _adaptive(op, backward=False)


def adaptive_pool_backward(op: str) -> Lowering:
    return _adaptive(op, backward=True)
