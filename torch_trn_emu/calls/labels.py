"""What the HBM buffers of a program stand for, said where the program is made.

A lowering that passes a tensor's sizes to a kernel labels the kernel's buffer with that tensor:
`labelled(program, {"in": x, "out": call.out})`. `TensorArg.views` says where the tensor's elements
lie; a tensor that is read in another order is `permuted`, `expanded` or `spanned` first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..isa import Label, Memory, Program, Split, View, dense_strides
from . import TensorArg

__all__ = [
    "constant",
    "expanded",
    "labelled",
    "made",
    "permuted",
    "relabelled",
    "spanned",
]

Stands = TensorArg | Sequence[TensorArg] | None


def _views(t: Stands) -> tuple[View, ...]:
    """Of several tensors, one after the other; none if one is not known."""
    if t is None:
        return ()
    if isinstance(t, TensorArg):
        return t.views
    parts = [one.views for one in t if one.numel]
    return tuple(v for views in parts for v in views) if all(parts) else ()


def labelled(
    program: Program,
    buffers: Mapping[str, Stands],
    *,
    before: Mapping[str, Stands] | None = None,
    outer: Mapping[str, int] | None = None,
    steps: Mapping[str, int] | None = None,
    splits: Mapping[str, Split] | None = None,
) -> Program:
    """The program, with what its HBM buffers stand for; names that it lacks do not matter.

    before  what an output holds at first, if it is read or not written whole
    outer   a core's share of these is a part of the rest of [outer, rest]; of others, of all
    steps   elements from where a core's memory of these begins to where the next core's does
    splits  how these lie in a core's memory, so that a core with less than others stores no more
    """
    held, shares, moves, cuts = before or {}, outer or {}, steps or {}, splits or {}
    names = [b.name for b in program.buffers if b.memory is Memory.HBM]
    labels = {
        n: Label(
            views=_views(buffers[n]),
            before=_views(held.get(n)),
            outer=shares.get(n, 1),
            step=moves.get(n, 0),
            split=cuts.get(n),
        )
        for n in names
        if n in buffers and _views(buffers[n])
    }
    return replace(program, labels={**program.labels, **labels})


def relabelled(programs: Sequence[Program], names: Mapping[str, Stands]) -> tuple[Program, ...]:
    """Programs of another call in this one's: `names` as `labelled` takes them, for all."""
    return tuple(labelled(p, names) for p in programs)


def made(name: str, shape: tuple[int, ...], torch_dtype: str) -> TensorArg:
    """A contiguous value that one program of a call makes and others read."""
    strides = dense_strides(shape)
    view = View(("made", name), torch_dtype, shape, strides)
    return TensorArg(torch_dtype, shape, strides, views=(view,))


def constant(value: float, shape: tuple[int, ...], torch_dtype: str) -> TensorArg:
    """An operand of one value, which the program reads all the same."""
    view = View(("constant", value), torch_dtype, shape, (0,) * len(shape))
    return TensorArg(torch_dtype, shape, dense_strides(shape), views=(view,))


def permuted(t: TensorArg, order: Sequence[int]) -> TensorArg:
    """With its dimensions in another order."""
    return replace(
        t,
        shape=tuple(t.shape[d] for d in order),
        strides=tuple(t.strides[d] for d in order),
        views=tuple(v.permuted(order) for v in _shaped(t)),
    )


def expanded(t: TensorArg, shape: tuple[int, ...]) -> TensorArg:
    """Broadcast to a shape."""
    views = tuple(v.over(shape) for v in _shaped(t))
    strides = views[0].strides if views else dense_strides(shape)
    return replace(t, shape=shape, strides=strides, views=views)


def spanned(t: TensorArg) -> TensorArg:
    """Its memory, from the first element to the last."""
    views = tuple(v.span() for v in _shaped(t))
    return replace(t, shape=(t.span,), strides=(1,), views=views)


def _shaped(t: TensorArg) -> tuple[View, ...]:
    """The tensor's view in its shape, which may have dimensions of 1 more or less; none if its
    elements lie elsewhere than its strides say.
    """
    if len(t.views) != 1:
        return ()
    (v,) = t.views
    if v.shape == t.shape:
        return t.views
    wide = [(n, s) for n, s in zip(v.shape, v.strides, strict=True) if n != 1]
    if wide != [(n, s) for n, s in zip(t.shape, t.strides, strict=True) if n != 1]:
        return ()
    return (replace(v, shape=t.shape, strides=t.strides),)
