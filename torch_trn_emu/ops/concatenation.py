"""Rows of concatenation, padding, flips, rolls and slices' gradients: exact copies between strides.

Each reader of a call gives, for every dimension of the result, the segments it comes from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled, made, spanned
from ..kernels.pointwise import constant as filled
from ..kernels.strided_copy import Box, Segment, boxes_of, relayout
from .by_rows import SMALL, by_rows
from .copies import copied
from .elementwise import elementwise
from .faster import faster
from .op import Lowered, Lowering, dense, flat

__all__ = ["concatenate", "exact", "placed", "roll", "scatter_slice", "whole"]

Segments = list[list[Segment]]
Reader = Callable[[Call, TensorArg, TensorArg], Segments]


def _unsqueezed(t: TensorArg, dim: int) -> TensorArg:
    """With a dimension of size 1."""
    shape, strides = (*t.shape[:dim], 1, *t.shape[dim:]), (*t.strides[:dim], 0, *t.strides[dim:])
    return replace(t, shape=shape, strides=strides)


def whole(size: int) -> list[Segment]:
    return [Segment(0, size, 0)]


def placed(
    call: Call, target: Target, sources: dict[str, TensorArg], boxes: list[Box], constant: float = 0
) -> Lowered:
    out = call.out
    ways = [_by_dma(call, target, sources, boxes, constant)]
    if in_rows := by_rows(call.name, target, sources, out, boxes, constant):
        ways.append((in_rows,))
    return faster(ways, target)


def _placed_in_order(
    call: Call,
    target: Target,
    sources: dict[str, TensorArg],
    boxes: Callable[[Mapping[str, TensorArg]], list[Box]],
    constant: float = 0,
) -> Lowered:
    """`placed`, or after copies of those sources whose elements lie apart, if that is faster."""
    ways = [placed(call, target, sources, boxes(sources), constant)]
    apart = {n: t for n, t in sources.items() if t.numel > SMALL and _lie_apart(t)}
    if apart:
        ordered = {n: made(f"{n} in order", t.shape, t.torch_dtype) for n, t in apart.items()}
        copies = [p for n, t in apart.items() for p in copied(t, ordered[n], target)]
        held = sources | ordered
        ways.append((*copies, *placed(call, target, held, boxes(held), constant)))
    return faster(ways, target)


def _lie_apart(t: TensorArg) -> bool:
    """Whether a row's elements do, or rows or elements repeat."""
    steps = [step for size, step in zip(t.shape, t.strides, strict=True) if size > 1]
    return bool(steps) and (steps[-1] != 1 or 0 in steps)


def _by_dma(
    call: Call,
    target: Target,
    sources: Mapping[str, TensorArg],
    boxes: Sequence[Box],
    constant: float,
) -> Lowered:
    out = call.out
    program = relayout(
        call.name,
        {n: (t.span, t.dtype) for n, t in sources.items()},
        (out.numel, out.dtype),
        boxes,
        cores=target.cores,
        constant=float(constant),
    )
    held = {n: t if t.contiguous else spanned(t) for n, t in sources.items()} | {"out": out}
    if program.cores > 1:  # a core has its part of each box, which no part of the result is
        return (program,)
    return (labelled(program, held),)


def concatenate(call: Call, target: Target) -> Lowered:
    """Pieces in0, in1, ... one after the other along a dimension; `stack` makes that dimension."""
    out, pieces = call.out, [t for t in call.tensors if t.numel]
    given = call.argument(1, 0)
    dim = given % len(out.shape) if isinstance(given, int) and out.shape else 0
    if call.name == "stack":
        pieces = [_unsqueezed(t, dim) for t in pieces]
    to_strides = dense(out.shape, out.torch_dtype).strides

    def boxes(sources: Mapping[str, TensorArg]) -> list[Box]:
        found, at = [], 0
        for name, t in sources.items():
            segments = [whole(n) for n in t.shape]
            segments[dim] = [Segment(at, t.shape[dim], 0)]
            found += boxes_of(name, t.strides, to_strides, segments)
            at += t.shape[dim]
        return found

    return _placed_in_order(call, target, {f"in{k}": t for k, t in enumerate(pieces)}, boxes)


def exact(reader: Reader, *, constant_at: int | None = None) -> Lowering:
    """One source "in" and, where segments have no source, a constant."""

    def lower(call: Call, target: Target) -> Lowered:
        source, out = call.tensors[0], call.out
        constant = call.argument(constant_at, 0) if constant_at is not None else 0
        if not source.numel:
            return (elementwise(call.name, [filled(float(constant))], [], out, target),)
        rank = len(out.shape)
        lead = rank - len(source.shape)
        padded = replace(source, shape=(1,) * lead + source.shape,
                         strides=(0,) * lead + source.strides)  # fmt: skip
        to_strides = dense(out.shape, out.torch_dtype).strides
        segments = reader(call, padded, out)

        def boxes(sources: Mapping[str, TensorArg]) -> list[Box]:
            return boxes_of("in", sources["in"].strides, to_strides, segments)

        return _placed_in_order(call, target, {"in": padded}, boxes, constant)

    return lower


# --- readers ---


def padding(kind: str) -> Reader:
    """Pads from the last dimension on: with a constant, mirrored, or with the edge."""

    def read(call: Call, x: TensorArg, out: TensorArg) -> Segments:
        pads = call.argument(1, ())
        segments = [whole(n) for n in x.shape]
        for k in range(len(pads) // 2):
            dim = len(x.shape) - 1 - k
            before, after = pads[2 * k], pads[2 * k + 1]
            size, cut = x.shape[dim], max(0, -before)
            kept = size - cut - max(0, -after)
            found = [Segment(max(0, before), kept, cut)]
            end = max(0, before) + kept
            if before > 0:
                starts = {"constant": (None, 1), "reflect": (before, -1), "edge": (0, 0)}
                found.insert(0, Segment(0, before, *starts[kind]))
            if after > 0:
                starts = {"constant": (None, 1), "reflect": (size - 2, -1), "edge": (size - 1, 0)}
                found.append(Segment(end, after, *starts[kind]))
            segments[dim] = found
        return segments

    return read


def flipped(call: Call, x: TensorArg, out: TensorArg) -> Segments:
    dims = {d % len(x.shape) for d in call.argument(1, ())}
    return [[Segment(0, n, n - 1, -1)] if d in dims else whole(n) for d, n in enumerate(x.shape)]


def rolled(call: Call, x: TensorArg, out: TensorArg) -> Segments:
    """Without dimensions the tensor is one long run."""
    shifts, dims = call.argument(1, ()), call.argument(2, ())
    segments = [whole(n) for n in x.shape]
    for shift, dim in zip(shifts, dims or (0,), strict=True):
        size = x.shape[dim]
        by = shift % size
        segments[dim] = [Segment(0, by, size - by), Segment(by, size - by, 0)]
    return segments


def roll(call: Call, target: Target) -> Lowered:
    x = call.tensors[0]
    if call.argument(2, ()) or len(x.shape) < 2 or not x.contiguous:
        return exact(rolled)(call, target)
    run, out = flat(x, x.numel), flat(call.out, x.numel)
    one = Call(call.op, (run, *call.arguments[1:]), (out,), call.policy)
    return exact(rolled)(one, target)


def repeated(call: Call, x: TensorArg, out: TensorArg) -> Segments:
    return [
        [Segment(r * n, n, 0) for r in range(whole // n)]
        for n, whole in zip(x.shape, out.shape, strict=True)
    ]


def _within(size: int, start: int, step: int, count: int) -> list[Segment]:
    """`count` places of a dimension that come from the source, and the rest, which does not."""
    end = start + (count - 1) * step + 1
    found = [Segment(start, count, 0, to_step=step), Segment(0, start, None)]
    found.append(Segment(end, size - end, None))
    found += [Segment(start + r, count - 1, None, to_step=step) for r in range(1, step)]
    return found


def sliced_backward(call: Call, g: TensorArg, out: TensorArg) -> Segments:
    """Zeros around the gradient of a slice."""
    dim, start, _, step = (call.argument(k, 0) for k in range(2, 6))
    size = out.shape[dim]
    start = min(max(start + size if start < 0 else start, 0), size)
    segments = [whole(n) for n in g.shape]
    segments[dim] = _within(size, start, step or 1, g.shape[dim])
    return segments


def selected_backward(call: Call, g: TensorArg, out: TensorArg) -> Segments:
    dim, index = call.argument(2, 0) % len(out.shape), call.argument(3, 0)
    segments = [whole(n) for n in out.shape]
    segments[dim] = _within(out.shape[dim], index % out.shape[dim], 1, 1)
    return segments


def select_backward(call: Call, target: Target) -> Lowered:
    """A gradient without the selected dimension is read with a stride of 0 there."""
    g, out = call.tensors[0], call.out
    dim = call.argument(2, 0) % len(out.shape)
    wide = replace(call, arguments=(_unsqueezed(g, dim), *call.arguments[1:]))
    return exact(selected_backward)(wide, target)


def scatter_slice(call: Call, target: Target) -> Lowered:
    """A copy of "in" with a slice, or one index, from "src"."""
    x, src, out = call.tensors[0], call.tensors[1], call.out
    dim, start = call.argument(2, 0) % len(out.shape), call.argument(3, 0)
    step = call.argument(5, 1) if call.name == "slice_scatter" else 1
    if call.name == "select_scatter":
        src = _unsqueezed(src, dim)
    size = out.shape[dim]
    start = min(max(start + size if start < 0 else start, 0), size)
    to_strides = dense(out.shape, out.torch_dtype).strides
    segments = [whole(n) for n in out.shape]
    put, *rest = _within(size, start, step, src.shape[dim])
    kept = [Segment(s.to, s.count, s.to, s.to_step, s.to_step) for s in rest]

    def boxes(sources: Mapping[str, TensorArg]) -> list[Box]:
        parts = ("src", [put]), ("in", kept)
        return [
            box
            for name, part in parts
            for box in boxes_of(name, sources[name].strides, to_strides,
                                [*segments[:dim], part, *segments[dim + 1 :]])
        ]  # fmt: skip

    return _placed_in_order(call, target, {"in": x, "src": src}, boxes)
