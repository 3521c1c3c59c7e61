"""Rows of what an order tells: the one of a rank, and permutations from random numbers."""

from collections.abc import Mapping

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled, made
from ..formats import FORMATS
from .elementwise import elementwise, lower_elementwise
from .formulas import Value, in_float32, steps_of
from .indexing import at_elements, gathered
from .max_and_min import largest
from .op import Lowered, flat
from .reductions import Describe, how_many_numbers, nan_of_rows, reduction
from .sorting import along_dimension, found_in, ordered, topk

__all__ = ["kth", "median", "nanmedian", "randperm", "top"]


def _named(call: Call, dim_at: int) -> int | None:
    """The dimension that a call names; without one all elements are one row."""
    if "dim" not in call.op.partition(".")[2] and call.name != "kthvalue":
        return None
    return int(call.argument(dim_at, -1)) % max(1, len(call.tensors[0].shape))


def _rows(call: Call, dim_at: int) -> tuple[TensorArg, int]:
    """What a call orders, and the dimension."""
    x, dim = call.tensors[0], _named(call, dim_at)
    return (flat(x, x.numel), 0) if dim is None else (x, dim)


def _reduced(describe: Describe, call: Call, out: TensorArg, target: Target) -> Lowered:
    """A reduction over what a call orders."""
    dim = _named(call, 1)
    given = Call("aten::sum.dim_IntList", (call.tensors[0], () if dim is None else (dim,)), (out,))
    return reduction(describe)(given, target)


def _of_rank(
    x: TensorArg, dim: int, k: int, outs: Mapping[str, TensorArg], target: Target
) -> Lowered:
    """The k-th smallest of each row, and where it is."""
    columns = x.shape[dim] if x.shape else 1
    backwards = 2 * k > columns  # from the largest on
    k = columns + 1 - k if backwards else k
    return along_dimension(x, dim, outs, target, k, backwards, first=k - 1)


def kth(call: Call, target: Target) -> Lowered:
    return _of_rank(*_rows(call, 2), int(call.argument(1, 1)), found_in(call), target)


def median(call: Call, target: Target) -> Lowered:
    """The lower of the middle two, or NaN where a row has one."""
    x, dim = _rows(call, 1)
    k = ((x.shape[dim] if x.shape else 1) + 1) // 2
    if x.dtype not in FORMATS:
        return _of_rank(x, dim, k, found_in(call), target)
    out = call.out
    found, nan = (made(f"{n} of rows", out.shape, out.torch_dtype) for n in ("median", "NaN"))
    marks = _reduced(nan_of_rows, call, nan, target)
    ordered = _of_rank(x, dim, k, {**found_in(call), "values": found}, target)
    return (*marks, *ordered,
            *lower_elementwise(Call("aten::add.Tensor", (found, nan), (out,)), target))  # fmt: skip


def nanmedian(call: Call, target: Target) -> Lowered:
    """The lower of the middle two numbers: how many there are in a row says where it is in order,
    for NaN comes last.
    """
    x, dim = _rows(call, 1)
    if x.dtype not in FORMATS:
        return median(call, target)
    rows = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
    numbers, rank = made("numbers", rows, "float32"), made("rank", rows, "int32")
    outs = dict(zip(("values", "index"), call.outputs, strict=False))
    in_order = {n: made(f"{n} in order", x.shape, t.torch_dtype) for n, t in outs.items()}
    programs = [
        *_reduced(how_many_numbers, call, numbers, target),
        elementwise("rank", steps_of(_lower_middle, 1), [numbers], rank, target),
        *along_dimension(x, dim, in_order, target, x.shape[dim] if x.shape else 1, False),
    ]
    for name, out in outs.items():
        chosen = Call("aten::gather", (in_order[name], dim, rank), (out,))
        programs += gathered(at_elements)(chosen, target)
    return tuple(programs)


def _lower_middle(count: Value) -> Value:
    """(count - 1) / 2 rounded down, and 0 for 0."""
    middle = (count * 0.5 - 0.5).rounded_down().maximum(0.0)
    in_float32(middle.made)
    return middle


def top(call: Call, target: Target) -> Lowered:
    """The largest or smallest; a single one is that of max or min."""
    x, dim = call.tensors[0], int(call.argument(2, -1))
    if int(call.argument(1, 1)) != 1 or not x.shape or not x.numel:
        return topk(call, target)
    sign = -1.0 if call.argument(3, True) is False else 1.0
    extreme = Call("aten::max.dim", (x, dim, True), call.results)
    return largest(sign)(extreme, target)


def randperm(call: Call, target: Target) -> Lowered:
    """Random numbers, and where they are in order."""
    n = call.out.numel
    keys = made("keys", (n,), "float32")
    drawn = lower_elementwise(Call("aten::rand", ((n,),), (keys,)), target)
    order = ordered(1, n, n, False, "float32", target)
    return (*drawn, labelled(order, {"in": keys, "index": call.out}))
