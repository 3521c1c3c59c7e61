"""Rows of copies whose boxes are not segments of dimensions: diagonals, strides, chunks, pixels."""

from math import prod

from ..calls import Call, Target, TensorArg
from ..kernels.strided_copy import Box, boxes_of
from .concatenation import placed, whole
from .copies import copied
from .interpolation import resampling
from .op import Lowered, dense, flat

__all__ = [
    "chunked",
    "diagonal_backward",
    "pixel_shuffle",
    "strided",
    "unfold_backward",
    "upsample_nearest",
]


def chunked(call: Call, target: Target) -> Lowered:
    """Tensors in0, in1, ... cut into `num_chunks` along a dimension, a row of each in every chunk;
    zeros fill up what the last chunk lacks.
    """
    out, pieces = call.out, [t for t in call.tensors if t.numel]
    dim, chunks = int(call.argument(1, 0)), int(call.argument(2, 1))
    lead = prod(pieces[0].shape[: dim % len(pieces[0].shape)])
    row = out.numel // (lead * chunks)
    boxes, at = [], 0
    for k, t in enumerate(pieces):
        dim_ = dim % len(t.shape)
        inner, size = prod(t.shape[dim_ + 1 :]), t.shape[dim_]
        each = -(-size // chunks) * inner  # elements of one chunk
        full, rest = divmod(size * inner, each)
        strides, start = (chunks * row, row, 1), (size * inner, each, 1)
        for first, some, count in ((0, full, each), (full, min(1, rest), rest)):
            counts, there = (lead, some, count), at + first * row
            if some * count:
                boxes.append(Box(source=f"in{k}", counts=counts, to=there, to_strides=strides,
                                 start=first * each, strides=start))  # fmt: skip
        for first, some, count in (
            (full, min(1, rest), each - rest),
            (full + (rest > 0), chunks - full - (rest > 0), each),
        ):
            counts, there = (lead, some, count), at + first * row + (each - count)
            if some * count > 0:
                boxes.append(_zeros(counts, there, strides))
        at += each
    sources = {f"in{k}": flat(t, t.numel) for k, t in enumerate(pieces)}
    return placed(call, target, sources, boxes)


def _zeros(counts: tuple[int, ...], to: int, strides: tuple[int, ...]) -> Box:
    return Box(source="", counts=counts, to=to, to_strides=strides, strides=strides)


def _over_zeros(call: Call, target: Target, to: int, to_strides: tuple[int, ...]) -> Lowered:
    """The gradient, with strides of its own in a result that is 0 elsewhere."""
    g, out = call.tensors[0], call.out
    boxes = [_zeros(out.shape, 0, dense(out.shape, out.torch_dtype).strides)]
    if g.numel:
        boxes.append(Box(source="in", counts=g.shape, to=to, to_strides=to_strides,
                         strides=g.strides))  # fmt: skip
    return placed(call, target, {"in": g}, boxes)


def strided(call: Call, target: Target) -> Lowered:
    """as_strided_scatter: a copy of "in" with "src" at the strides named."""
    x, src, out = call.tensors[0], call.tensors[1], call.out
    sizes, steps = call.argument(2, ()), call.argument(3, ())
    kept = boxes_of("in", (1,), (1,), [whole(out.numel)])
    put = Box(source="src", counts=sizes, to=int(call.argument(4, 0)), to_strides=steps,
                 strides=src.strides)  # fmt: skip
    if not x.contiguous:
        raise KeyError("as_strided_scatter of a tensor that is not contiguous")
    return placed(call, target, {"in": x, "src": src}, [*kept, put])


def diagonal_backward(call: Call, target: Target) -> Lowered:
    """Zeros with the gradient on a diagonal."""
    out = call.out
    offset, one, two = (int(call.argument(k, d)) for k, d in ((2, 0), (3, 0), (4, 1)))
    to_strides = dense(out.shape, out.torch_dtype).strides
    down, across = to_strides[one], to_strides[two]
    kept = [
        k for k in range(len(out.shape)) if k not in (one % len(out.shape), two % len(out.shape))
    ]
    first = max(0, offset) * across + max(0, -offset) * down
    return _over_zeros(call, target, first, (*(to_strides[k] for k in kept), down + across))


def unfold_backward(call: Call, target: Target) -> Lowered:
    """Zeros with the windows' gradients, which must not overlap."""
    g, out = call.tensors[0], call.out
    dim, size, step = (int(call.argument(k, 1)) for k in (2, 3, 4))
    if step < size:
        raise KeyError("windows that overlap")
    if not out.shape:
        return copied(flat(g, 1), flat(out, 1), target)
    to_strides = dense(out.shape, out.torch_dtype).strides
    dim %= len(out.shape)
    along = to_strides[dim]
    steps = (*to_strides[:dim], step * along, *to_strides[dim + 1 :], along)
    return _over_zeros(call, target, 0, steps)


def _split(
    call: Call, target: Target, t: TensorArg, shape: tuple[int, ...], strides: tuple[int, ...],
    to_strides: tuple[int, ...],
) -> Lowered:  # fmt: skip
    boxes = boxes_of("in", strides, to_strides, [whole(n) for n in shape])
    return placed(call, target, {"in": t}, boxes)


def pixel_shuffle(call: Call, target: Target) -> Lowered:
    """[.., c r r, h, w] to [.., c, h r, w r], or back."""
    x, out, r = call.tensors[0], call.out, int(call.argument(1, 1))
    small, big = (x, out) if call.name == "pixel_shuffle" else (out, x)
    c, h, w = big.shape[-3], small.shape[-2], small.shape[-1]
    n = prod(small.shape[:-3])
    shape = (n, c, r, r, h, w)
    packed = (c * r * r * h * w, r * r * h * w, r * h * w, h * w, w, 1)
    spread = (c * r * r * h * w, r * r * h * w, w * r, 1, r * w * r, r)
    ways = (packed, spread) if small is x else (spread, packed)
    return _split(call, target, flat(x, x.numel), shape, *ways)


def upsample_nearest(call: Call, target: Target) -> Lowered:
    """Every element repeated; to sizes that are no multiples, as any resampling."""
    x, out = call.tensors[0], call.out
    rank = len(x.shape) - 2
    factors = [b // a for a, b in zip(x.shape[2:], out.shape[2:], strict=True)]
    if any(a * f != b for a, f, b in zip(x.shape[2:], factors, out.shape[2:], strict=True)):
        return resampling(1)(call, target)
    to = dense(out.shape, out.torch_dtype).strides
    shape, strides, to_strides = [*x.shape[:2]], [*x.strides[:2]], [*to[:2]]
    for d in range(rank):
        shape += [x.shape[2 + d], factors[d]]
        strides += [x.strides[2 + d], 0]
        to_strides += [to[2 + d] * factors[d], to[2 + d]]
    return _split(call, target, x, tuple(shape), tuple(strides), tuple(to_strides))
