"""What `bind` of the rows of OPS gives, by family: the same readings of a call as its lowering."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import Unimplemented
from ..isa import Buffer, Memory
from .binding import Bind, Binding, Feed, Programs, Taken, as_it_is
from .call import Call, TensorArg
from .heads import layout_of
from .limits import P
from .moving import turned
from .normalizing import ROW_OPS
from .op import around
from .optimizers import OPTIMIZERS
from .reductions import collapsed, reduced_dims

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "of_attention",
    "of_attention_backward",
    "of_batch_norm_backward",
    "of_convolution",
    "of_convolution_backward",
    "of_copy",
    "of_elementwise",
    "of_embedding_gradient",
    "of_extreme",
    "of_moments",
    "of_names",
    "of_optimizer",
    "of_pieces",
    "of_product",
    "of_reduction",
    "of_rows",
]


def _buffers(programs: Programs) -> dict[str, Buffer]:
    return {b.name: b for p in programs for b in p.buffers if b.memory is Memory.HBM}


def _tensors(call: Call) -> list[tuple[tuple[int, ...], TensorArg]]:
    """Tensor arguments with their places, those in lists too."""
    found: list[tuple[tuple[int, ...], TensorArg]] = []
    for k, value in enumerate(call.arguments):
        if isinstance(value, TensorArg):
            found.append(((k,), value))
        elif isinstance(value, tuple):
            found += [((k, i), t) for i, t in enumerate(value) if isinstance(t, TensorArg)]
    return found[: len(call.tensors)]


def _only_price(call: Call, why: str) -> Unimplemented:
    return Unimplemented(f"{call.op}: {why} (lowering/bindings.py)")


# --- elementwise ---------------------------------------------------------------------------------


def of_elementwise(call: Call, programs: Programs) -> Binding:
    """Operands in0, in1, ... in the result's shape, or as they repeat."""
    given = _tensors(call)
    if any(t.on_host and not t.shape for _, t in given):
        raise _only_price(call, "a number in a tensor of the host is not in the program")
    if call.name in ("copy", "_copy_from"):
        given = given[1:]
    buffers, shape = _buffers(programs), call.out.shape
    feeds = {}
    for k, (place, t) in enumerate(given):
        if f"in{k}" in buffers:
            expands = buffers[f"in{k}"].elements != t.numel
            feeds[f"in{k}"] = Feed(
                argument=place, view=(lambda x: x.expand(shape)) if expands else as_it_is
            )
    return Binding(feeds=feeds, results=(Taken(buffer="out"),))


# --- products ------------------------------------------------------------------------------------


def of_product(call: Call, programs: Programs) -> Binding:
    """Both factors by their buffers' order, the addend's memory."""
    adds = call.arguments[0] is None or "add" in call.name
    if call.policy == "mxfp4":
        raise _only_price(call, "MXFP4 is priced as MXFP8")
    first = 1 if adds else 0
    lhs, rhs = (_buffers(programs)[n].shape for n in ("lhs", "rhs"))
    contracted = call.argument(first).shape[-1]
    weight = call.name == "linear"

    def left(x: "Tensor") -> "Tensor":
        straight = x.reshape(lhs[0], -1, contracted)
        return straight if lhs[2] == contracted and _straight(call, first) else straight.mT

    def right(x: "Tensor") -> "Tensor":
        matrix = x.mT if weight else x
        straight = matrix.reshape(rhs[0], contracted, -1)
        return straight if _straight(call, first + 1, exchanged=weight) else straight.mT

    feeds = {
        "lhs": Feed(argument=(first,), view=left),
        "rhs": Feed(argument=(first + 1,), view=right),
    }
    if "addend" in _buffers(programs):
        feeds["addend"] = Feed(argument=(0 if adds else 2,), memory=True)
    return Binding(feeds=feeds, results=(Taken(buffer="out"),))


def _straight(call: Call, at: int, exchanged: bool = False) -> bool:
    """Whether the lowering takes a factor in its own order, not turned in memory."""
    t = call.argument(at)
    shape, strides = t.shape, t.strides
    if exchanged:
        shape, strides = shape[::-1], strides[::-1]
    if len(shape) == 1:  # a vector as a row, or as a column of contiguous rows
        return True
    return not (shape[-1] > 1 and strides[-1] != 1)


# --- attention -----------------------------------------------------------------------------------


def of_attention(call: Call, programs: Programs) -> Binding:
    feeds = _of_heads(call, programs, {"q": 0, "k": 1, "v": 2})
    if len(call.outputs) > 2:
        raise _only_price(call, "only the result and the logsumexp are stored")
    sums = [Taken(buffer="lse")] if "lse" in _buffers(programs) else []
    return Binding(feeds=feeds, results=(_head_by_head(call, "out", 0), *sums))


def of_attention_backward(call: Call, programs: Programs) -> Binding:
    if len(call.outputs) > 3:
        raise _only_price(call, "only the gradients of q, k and v are stored")
    feeds = _of_heads(call, programs, {"g": 0, "q": 1, "k": 2, "v": 3, "out": 4, "lse": 5})
    results = (_head_by_head(call, n, k) for k, n in enumerate(("dq", "dk", "dv")))
    return Binding(feeds=feeds, results=tuple(results))


def _head_by_head(call: Call, buffer: str, k: int) -> Taken:
    """A result of heads, from the memory that it spans."""
    t = call.outputs[k] if k < len(call.outputs) else None
    if t is None or layout_of(t) is None:
        return Taken(buffer=buffer)
    return Taken(buffer=buffer, view=lambda y: y.reshape(-1).as_strided(t.shape, t.strides))


def _of_heads(call: Call, programs: Programs, places: dict[str, int]) -> dict[str, Feed]:
    if call.argument(places["q"]).shape[-1] > P:
        raise _only_price(call, f"a head dimension beyond {P} is priced as several heads")
    feeds = {
        name: Feed(
            argument=(at,), memory=name != "lse" and layout_of(call.argument(at)) is not None
        )
        for name, at in places.items()
    }
    if "mask" in _buffers(programs):
        at = next(
            place for place, t in _tensors(call) if place[0] not in places.values() and t.shape
        )
        feeds["mask"] = Feed(argument=at, memory=True)
    return feeds


# --- rows and reductions -------------------------------------------------------------------------


def of_rows(
    name: str,
    places: Mapping[str, int],
    *,
    dim_at: int | None = None,
    absent: Mapping[str, float] = MappingProxyType({}),
) -> Bind:
    """An entry of ROW_OPS; `places` of its inputs, `absent` what they are when None is given."""

    def bind(call: Call, programs: Programs) -> Binding:
        dim = call.argument(dim_at, -1) if dim_at is not None else -1
        dim = dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim
        if not isinstance(dim, int):
            return _of_dims(call, programs, name, next(iter(places)))
        buffers, t = _buffers(programs), call.tensors[0]
        moved = dim_at is not None and buffers[next(iter(places))].shape[1] == around(t, dim)[1]
        moves = moved and name != "logsumexp"
        feeds = {
            n: Feed(argument=(at,), view=(lambda x: x.movedim(dim, -1)) if moved else as_it_is)
            if call.argument(at) is not None
            else Feed(constant=absent[n])
            for n, at in places.items()
        }
        names = ROW_OPS[name].outputs.split()
        shape = call.out.shape
        ahead = [*shape[:dim], *shape[dim:][1:], shape[dim]] if moves else []
        taken = [
            Taken(buffer=f"out {n}", view=(lambda y: y.reshape(ahead).movedim(-1, dim)))
            if moves
            else Taken(buffer=f"out {n.lstrip('*')}", rounds=n not in ("y", "dx"))
            for n in names
        ]
        made = [isinstance(r, TensorArg) for r in call.results]
        return Binding(
            feeds=feeds,
            results=tuple(t if m else None for t, m in zip(taken, made, strict=False)),
        )

    return bind


def _of_dims(call: Call, programs: Programs, name: str, source: str) -> Binding:
    """Several dimensions at once, of a call with one operand and one result."""
    t, order = call.tensors[0], _collapsing(call, call.tensors[0])
    dims = reduced_dims(call, t)
    if _buffers(programs)[source].shape[1] == collapsed(t.shape, dims)[1]:  # as if in rows
        order = [k for k in range(len(t.shape)) if k not in dims] + list(dims)
    feed = Feed(argument=(0,), view=lambda x: x.permute(order))
    return Binding(feeds={source: feed}, results=(Taken(buffer=f"out {ROW_OPS[name].outputs}"),))


def _collapsing(call: Call, t: TensorArg) -> list[int]:
    """Dimensions kept, then those reduced, then those kept at the end, as `collapsed` has them."""
    dims, rank = reduced_dims(call, t), len(t.shape)
    inner, tail = collapsed(t.shape, dims)[2], len(t.shape)
    while tail and (tail - 1 not in dims or t.shape[tail - 1] == 1) and inner > 1:
        tail -= 1
    order = [k for k in range(tail) if k not in dims]
    order += [k for k in range(rank) if k in dims and k < tail]
    return order + list(range(tail, rank))


def of_reduction(call: Call, programs: Programs) -> Binding:
    """One result, or of few rows, which are operands of their own."""
    return _reduced(call, programs, ("out",))


def of_moments(call: Call, programs: Programs) -> Binding:
    """A variance or deviation, and the mean where the call gives it."""
    return _reduced(call, programs, ("var", "mean")[: len(call.outputs)])


def of_extreme(call: Call, programs: Programs) -> Binding:
    """Of two tensors, of all elements, or the values along a dimension: places are integers."""
    if len(call.tensors) > 1:
        return of_elementwise(call, programs)
    if "values" in _buffers(programs):
        return Binding(feeds={"in": Feed(argument=(0,))}, results=(Taken(buffer="values"),))
    return of_reduction(call, programs)


def _reduced(call: Call, programs: Programs, names: tuple[str, ...]) -> Binding:
    """One operand, or few rows that are operands of their own."""
    buffers, t = _buffers(programs), call.tensors[0]
    outer, rows, inner = collapsed(t.shape, reduced_dims(call, t))
    order = _collapsing(call, t)

    def row(k: int) -> "Callable[[Tensor], Tensor]":
        return lambda x: x.permute(order).reshape(outer, rows, inner)[:, k]

    if "in" in buffers and len(call.outputs) == len(names):
        feed = Feed(argument=(0,), view=lambda x: x.permute(order))
        return Binding(feeds={"in": feed}, results=tuple(Taken(buffer=n) for n in names))
    if "in0" in buffers and len(buffers) == rows + 1:
        few = {f"in{k}": Feed(argument=(0,), view=row(k)) for k in range(rows)}
        return Binding(feeds=few, results=(Taken(buffer="out"),))
    raise _only_price(call, "of several results, the program's are not told apart")


# --- movement ------------------------------------------------------------------------------------


def of_copy(call: Call, programs: Programs) -> Binding:
    """A copy of elements, of runs that lie apart, or of a matrix turned in memory."""
    buffers = _buffers(programs)
    if len(programs) > 1:
        raise _only_price(call, "a copy between layouts, and one between dtypes")
    if "in0" in buffers:
        return of_elementwise(call, programs)
    source, out = buffers["in"], buffers["out"]
    (place, t), *_ = _tensors(call)[1:] if call.name in ("copy", "_copy_from") else _tensors(call)
    if programs[0].name.startswith("copy"):
        return _of_runs(place, source, out, call.out.numel)
    swap = turned(t) or turned(call.out)
    if swap is None:
        raise _only_price(call, "not a copy that the program has")
    batch, rows, columns = swap
    return Binding(
        feeds={"in": Feed(argument=place, view=lambda x: x.reshape(batch, rows, columns).mT)},
        results=(
            Taken(buffer="out", view=lambda y: y.reshape(rows, batch, columns).transpose(0, 1)),
        ),
    )


def _of_runs(place: tuple[int, ...], source: Buffer, out: Buffer, count: int) -> Binding:
    runs, pitch = source.shape
    run = min(pitch, out.shape[1])

    def apart(x: "Tensor") -> "Tensor":
        held = x.new_zeros(runs, pitch)
        whole = x.new_zeros(runs * run)
        whole[:count] = x.reshape(-1)
        held[:, :run] = whole.reshape(runs, run)
        return held

    taken = Taken(buffer="out", view=lambda y: y[:, :run].reshape(-1)[:count])
    feeds = {"in": Feed(argument=place, view=apart)}
    if out.shape[1] > run:  # what lies between the runs is not written
        feeds["out"] = Feed(constant=0.0)
    return Binding(feeds=feeds, results=(taken,))


def of_pieces(call: Call, programs: Programs) -> Binding:
    """Sources in0, in1, ... or "in", each as its memory lies; empty ones are left out."""
    buffers = _buffers(programs)
    given = [(place, t) for place, t in _tensors(call) if t.numel]
    if "in" in buffers:
        feeds = {"in": Feed(argument=given[0][0], memory=True)}
    else:
        feeds = {f"in{k}": Feed(argument=place, memory=True) for k, (place, _) in enumerate(given)}
    used = {name: feed for name, feed in feeds.items() if name in buffers}
    return Binding(feeds=used, results=(Taken(buffer="out"),))


_INTEGERS = ("index", "indices", "target")


def of_names(places: Mapping[str, int], *results: str) -> Bind:
    """Buffers in the order of their arguments' elements; a program may lack some of them.

    "new x" is written in place where the program has it.
    """
    return lambda call, programs: _named(programs, places, results)


def _named(programs: Programs, places: Mapping[str, int], results: tuple[str, ...]) -> Binding:
    buffers = _buffers(programs)
    feeds = {
        n: Feed(argument=(at,), integers=n in _INTEGERS) for n, at in places.items() if n in buffers
    }
    taken = (
        Taken(buffer=n, rounds=n in ("mean", "rstd", "dw", "db")) if n in buffers else None
        for n in results
    )
    written = {f"new {n}": at for n, at in places.items() if f"new {n}" in buffers}
    return Binding(feeds=feeds, results=tuple(taken), written=written)


def of_optimizer(call: Call, programs: Programs) -> Binding:
    """Lists of parameters, gradients and state; numbers that are tensors; one step for all."""
    how = OPTIMIZERS[call.name]
    places = {n: k for k, n in enumerate(("p", "g", *how.state))}
    steps = len(places)
    at = steps + how.counts_steps
    places |= {n: at + k for k, n in enumerate((*how.scalars, "grad_scale", "found_inf"))}
    binding = _named(programs, places, ())
    if how.counts_steps:
        step = Feed(argument=(steps,), view=lambda x: x[:1])
        return replace(binding, feeds={**binding.feeds, "step": step})
    return binding


def of_embedding_gradient(call: Call, programs: Programs) -> Binding:
    """Rows of the gradient added up by number, into zeros."""
    if call.argument(3, -1) >= 0 or call.argument(4, False):
        raise _only_price(call, "padding_idx and scale_grad_by_freq are not in the program")
    return of_names({"in": 0, "index": 1}, "out")(call, programs)


# --- windows and channels ------------------------------------------------------------------------


def of_convolution(call: Call, programs: Programs) -> Binding:
    """Image, weight and bias; a transposed one is the gradient of another."""
    if "dx" in _buffers(programs):
        return _named(programs, {"g": 0, "weight": 1, "bias": 2}, ("dx",))
    return _named(programs, {"in": 0, "weight": 1, "bias": 2}, ("out",))


def of_convolution_backward(call: Call, programs: Programs) -> Binding:
    """A program for each gradient."""
    if "in" in _buffers(programs) or any(a is True for a in call.arguments[6:8]):
        raise _only_price(call, "of a transposed one, factors change places")
    return _named(programs, {"g": 0, "x": 1, "weight": 2}, ("dx", "dw", "db"))


def of_batch_norm_backward(call: Call, programs: Programs) -> Binding:
    trains = call.argument(7, True)
    places = {"g": 0, "x": 1, "weight": 2, "mean": 5 if trains else 3, "rstd": 6, "variance": 4}
    return _named(programs, places, ("dx", "dw", "db"))
