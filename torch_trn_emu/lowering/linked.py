"""Bindings of lists, of indices, and of calls that several programs compute one after the other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import Unimplemented
from .binding import Bind, Binding, Feed, Programs, Taken
from .call import Call, TensorArg
from .compaction import BROADCAST

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "of_chosen",
    "of_foreach",
    "of_foreach_reduction",
    "of_group_norm_backward",
    "of_index",
    "of_made",
    "of_memory",
    "of_scatter",
    "of_sorted",
    "of_spread",
    "of_two",
    "through",
]


def _names(programs: Programs) -> set[str]:
    return {b.name for p in programs for b in p.buffers}


def _refused(call: Call, why: str) -> Unimplemented:
    return Unimplemented(f"{call.op}: {why} (lowering/linked.py)")


def of_memory(places: Mapping[str, int]) -> Bind:
    """Buffers that are arguments' memory; the result is "out"."""

    def bind(call: Call, programs: Programs) -> Binding:
        feeds = {n: Feed(argument=(at,), memory=True) for n, at in places.items()}
        return Binding(feeds=feeds, results=(Taken(buffer="out"),))

    return bind


def through(*results: str, first: Mapping[str, int]) -> Bind:
    """Programs each of which reads as "in" what the one before it made as "out"."""

    def bind(call: Call, programs: Programs) -> Binding:
        feeds = {n: Feed(argument=(at,)) for n, at in first.items()}
        links = ({}, *({"in": "out"} for _ in programs[1:]))
        return Binding(feeds=feeds, results=tuple(Taken(buffer=n) for n in results), links=links)

    return bind


def of_made(call: Call, programs: Programs) -> Binding:
    """A tensor that is made on the core, from numbers of the call."""
    start = int(isinstance(call.argument(0), TensorArg))
    after = [k for k in range(start, len(call.arguments))
             if isinstance(call.arguments[k], TensorArg)]  # fmt: skip
    if any(call.arguments[k].on_host for k in after) or len(after) > 1:
        raise _refused(call, "the value of a host tensor is assumed to be 0")
    feeds = {"in0": Feed(argument=(after[0],))} if after else {}
    return Binding(feeds=feeds, results=(Taken(buffer="out"),))


def of_two(call: Call, programs: Programs) -> Binding:
    """A result of each program."""
    results = tuple(Taken(buffer=f"{k} out") for k in range(len(programs)))
    if any(b.name == "in0" for p in programs for b in p.buffers):
        raise _refused(call, "few rows are operands of their own")
    return Binding(feeds={"in": Feed(argument=(0,))}, results=results)


def of_sorted(call: Call, programs: Programs) -> Binding:
    """Values in order, or one of each row. Places are integers, and may differ if values do not."""
    if len(programs) > 1:
        raise _refused(call, "a dimension that is not the last is turned to be it")
    if "values" not in _names(programs):
        raise _refused(call, "only places")
    return Binding(feeds={"in": Feed(argument=(0,))}, results=(Taken(buffer="values"),))


def _masked(call: Call) -> dict[str, Feed]:
    """What a mask chooses from, and the mask, which may be broadcast together."""
    at = (1, 0) if isinstance(call.argument(1), tuple) else (1,)
    if call.name not in BROADCAST:
        return {"in": Feed(argument=(0,)), "mask": Feed(argument=at)}
    shapes = [t.shape for t in call.tensors[:2]]
    rank = max(map(len, shapes))
    wide = [(1,) * (rank - len(s)) + s for s in shapes]
    shape = tuple(max(sizes) for sizes in zip(*wide, strict=True))

    def repeated(x: "Tensor") -> "Tensor":
        return x.expand(shape)

    return {"in": Feed(argument=(0,), view=repeated), "mask": Feed(argument=at, view=repeated)}


def of_chosen(call: Call, programs: Programs) -> Binding:
    """What a mask chooses; one entry more is past the end."""
    count = call.out.numel
    taken = Taken(buffer="out", view=lambda y: y.reshape(-1)[:count])
    return Binding(feeds=_masked(call), results=(taken,))


def of_spread(call: Call, programs: Programs) -> Binding:
    """The next of the source's elements where a mask is set."""
    feeds = {**_masked(call), "source": Feed(argument=(2,))}
    return Binding(feeds=feeds, results=(Taken(buffer="out"),))


# --- indices -------------------------------------------------------------------------------------


def _indices(call: Call) -> dict[str, Feed]:
    """Of a list of tensors, some of which may be None."""
    given = [k for k, t in enumerate(call.argument(1, ())) if isinstance(t, TensorArg)]
    return {f"index {n}" if n else "index": Feed(argument=(1, k), integers=True)
            for n, k in enumerate(given)}  # fmt: skip


def of_index(call: Call, programs: Programs) -> Binding:
    if "mask" in _names(programs):
        return of_chosen(call, programs)
    feeds = {"table": Feed(argument=(0,)), **_indices(call)}
    return Binding(feeds=feeds, results=(Taken(buffer="out"),))


def of_scatter(index_at: int, source_at: int) -> Bind:
    """A copy of the table, or the table itself in place, into which entries are put."""

    def bind(call: Call, programs: Programs) -> Binding:
        names = _names(programs[-1:])
        if "index" not in names or (len(programs) > 1 and "in0" not in _names(programs[:1])):
            raise _refused(call, "not a copy of the table and a scatter by index")
        listed = isinstance(call.argument(index_at), tuple)
        feeds = _indices(call) if listed else {"index": Feed(argument=(index_at,), integers=True)}
        if "in" in names:
            feeds["in"] = Feed(argument=(source_at,))
        feeds["in0" if len(programs) > 1 else "out"] = Feed(argument=(0,))
        return Binding(feeds=feeds, results=(Taken(buffer="out"),), links=({}, {"out": "out"}))

    return bind


# --- lists ---------------------------------------------------------------------------------------


def _sizes(call: Call, at: int) -> tuple[int, ...]:
    return tuple(t.numel for t in call.argument(at))


def _piece(start: int, size: int) -> Taken:
    def cut(y: "Tensor") -> "Tensor":
        return y.reshape(-1)[start : start + size]

    return Taken(buffer="out", view=cut)


def of_foreach(call: Call, programs: Programs) -> Binding:
    """Lists as runs of elements; a list of numbers must have one value."""
    lists = [k for k, a in enumerate(call.arguments)
             if isinstance(a, tuple) and a and isinstance(a[0], TensorArg)]  # fmt: skip
    numbers = [a for a in call.arguments if isinstance(a, tuple) and a
               and not isinstance(a[0], TensorArg)]  # fmt: skip
    if any(len(set(a)) > 1 for a in numbers) or any(t.on_host for t in call.tensors):
        raise _refused(call, "of a list of numbers, the first is for all")
    sizes = _sizes(call, lists[0])
    if len(sizes) == 1 or any(_sizes(call, k) != sizes for k in lists):
        lists = [k for k in lists if _sizes(call, k) == sizes]
    copies = call.name == "_foreach_copy"
    names = {f"in{n}": k for n, k in enumerate(lists[1:] if copies else lists)}
    known = _names(programs)
    feeds = {n: Feed(argument=(k,)) for n, k in names.items() if n in known}
    if call.op.split(".")[0].endswith("_"):
        return Binding(feeds=feeds, written={"out": 0})
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return Binding(feeds=feeds, results=tuple(map(_piece, starts, sizes)))


def of_foreach_reduction(call: Call, programs: Programs) -> Binding:
    """One element for each tensor; those of one size lie one after the other."""
    sizes = _sizes(call, 0)
    if sorted(sizes, key=sizes.index) != list(sizes):
        raise _refused(call, "tensors of one size are not next to each other")
    feeds = {"in": Feed(argument=(0,))}
    return Binding(feeds=feeds, results=tuple(_piece(k, 1) for k in range(len(sizes))))


# --- several programs ----------------------------------------------------------------------------


def of_group_norm_backward(call: Call, programs: Programs) -> Binding:
    """The gradients of the parameters are summed over the images by programs of their own."""
    names = {"g": 0, "x": 1, "mean": 2, "rstd": 3, "weight": 4}
    known = _names(programs[:1])
    feeds = {n: Feed(argument=(at,)) for n, at in names.items() if n in known}
    wanted = [n for n, want in zip(("dw", "db"), call.argument(9)[1:], strict=True) if want]
    links = ({}, *({"in": n} for n in wanted))
    sums = {n: Taken(buffer=f"{k + 1} out") for k, n in enumerate(wanted)}
    dx = Taken(buffer="dx") if "dx" in known else None
    return Binding(feeds=feeds, results=(dx, sums.get("dw"), sums.get("db")), links=links)
