"""Rows of what an order tells: the one of a rank, and permutations from random numbers."""

from collections.abc import Callable

from ..calls import Call, Target
from ..calls.labels import labelled, made
from .elementwise import lower_elementwise
from .max_and_min import largest
from .op import Lowered, Lowering, flat
from .sorting import along_dimension, found_in, ordered, topk

__all__ = ["kth", "middle", "randperm", "ranked", "top"]


def ranked(rank: Callable[[Call, int], int], dim_at: int) -> Lowering:
    """The one of each row, or of all elements, that has a rank from the smallest on."""

    def lower(call: Call, target: Target) -> Lowered:
        x = call.tensors[0]
        dim = call.argument(dim_at, -1)
        if "dim" not in call.op.partition(".")[2] and call.name != "kthvalue":
            x, dim = flat(x, x.numel), 0
        columns = x.shape[dim] if x.shape else 1
        k = rank(call, columns)
        backwards = 2 * k > columns  # from the largest on
        k = columns + 1 - k if backwards else k
        return along_dimension(x, dim, found_in(call), target, k, backwards, first=k - 1)

    return lower


def top(call: Call, target: Target) -> Lowered:
    """The largest or smallest; a single one is that of max or min."""
    x, dim = call.tensors[0], int(call.argument(2, -1))
    if int(call.argument(1, 1)) != 1 or not x.shape or not x.numel:
        return topk(call, target)
    sign = -1.0 if call.argument(3, True) is False else 1.0
    extreme = Call("aten::max.dim", (x, dim, True), call.results)
    return largest(sign)(extreme, target)


def kth(call: Call, columns: int) -> int:
    return int(call.argument(1, 1))


def middle(call: Call, columns: int) -> int:
    """The lower of two."""
    return (columns + 1) // 2


def randperm(call: Call, target: Target) -> Lowered:
    """Random numbers, and where they are in order."""
    n = call.out.numel
    keys = made("keys", (n,), "float32")
    drawn = lower_elementwise(Call("aten::rand", ((n,),), (keys,)), target)
    order = ordered(1, n, n, False, "float32", target)
    return (*drawn, labelled(order, {"in": keys, "index": call.out}))
