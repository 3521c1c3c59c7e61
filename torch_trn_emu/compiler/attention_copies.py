"""Leaves out the copies around attention, whose program reads and writes heads where they lie.

Of a projection for query, keys and values, say, which `nn.MultiheadAttention` lays out anew, and
of results that go by batch and row into the next projection.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .calls import tensor_of
from .graphs import added
from .nodes import call_tensor, is_item, users_of

__all__ = ["copied_order", "read_as_copied"]

aten = torch.ops.aten


def read_as_copied(graph: Graph, attention: Node) -> int:
    """Let attention read what copies are made of that only attention reads. Returns how many."""
    count = 0
    for operand in dict.fromkeys(attention.args[:3]):
        copy = _copy_of(operand)
        if copy is None or any(user.target is not attention.target for user in users_of(copy)):
            continue
        source: Any = copy.args[0]
        made = _seen_in(source.meta["val"], copy.meta["val"], operand.meta["val"])  # type: ignore[union-attr]
        if made is not None:
            with graph.inserting_before(attention):
                new = added(graph, aten.as_strided.default, source, *made)
            attention.replace_input_with(operand, new)  # type: ignore[arg-type]
            count += 1
    return count


def _copy_of(node: Any) -> Node | None:
    """The copy that a node is, or is a view of."""
    while node.target is not aten.clone.default:
        if not (is_item(node) or getattr(node.target, "is_view", False)):
            return None
        node = node.all_input_nodes[0]
    return node  # type: ignore[no-any-return]


def _seen_in(source: Tensor, copy: Tensor, view: Tensor) -> tuple[Any, ...] | None:
    """Sizes, strides and offset of a copy's view in what is copied; None if no strides give it."""
    lies = sorted(zip(copy.stride(), copy.shape, source.stride(), strict=True), reverse=True)
    first = view.storage_offset() - copy.storage_offset()
    numbers = (*source.stride(), *copy.stride(), *view.stride(), *view.shape, *copy.shape, first)
    if not all(isinstance(n, int) for n in numbers):
        return None  # symbols
    lies = [one for one in lies if one[1] > 1]
    reach, offset, strides = [], source.storage_offset(), []
    for step, _, to in lies:
        reach.append(first // step)
        offset, first = offset + reach[-1] * to, first % step
    for size, step in zip(view.shape, view.stride(), strict=True):
        at = next((k for k, one in enumerate(lies) if 0 < one[0] <= step), None)
        if at is None or size == 1:
            strides.append(0)
            if size > 1 and step:
                return None
            continue
        times, rest = divmod(step, lies[at][0])
        strides.append(times * lies[at][2])
        reach[at] += times * (size - 1)
        if rest:
            return None
    if strides[-1] != 1:
        return None  # each element would be a transfer of its own
    fits = not first and all(n < one[1] for n, one in zip(reach, lies, strict=True))
    return (list(view.shape), strides, offset) if fits else None


def copied_order(node: Node) -> tuple[list[int], list[Node]]:
    """In what order of its dimensions all that reads a result copies it, and those copies.

    Both are empty if something does not.
    """
    copies = list(dict.fromkeys(users_of(node)))
    orders = [_order(node, copy) for copy in copies]
    same = bool(orders) and all(order == orders[0] for order in orders)
    return (orders[0], copies) if same and orders[0] else ([], [])


def _order(node: Node, copy: Node) -> list[int]:
    """A result's dimensions in the order in which a copy of it has them; [] for no such copy."""
    out = tensor_of(node)
    source: Any = copy.args[0] if copy.target is aten.clone.default else None
    if out is None or source is None or not copy.meta["val"].is_contiguous():
        return []
    read = call_tensor(source)
    if read.numel != out.numel:
        return []
    by_stride = {s: d for d, (n, s) in enumerate(zip(out.shape, out.strides, strict=True)) if n > 1}
    order = [d for d, n in enumerate(out.shape) if n == 1]
    for size, step in zip(read.shape, read.strides, strict=True):
        joined: list[int] = []
        while size > 1:
            d = by_stride.get(step)
            if d is None or size % out.shape[d]:
                return []
            joined.insert(0, d)
            size, step = size // out.shape[d], step * out.shape[d]
        order += joined
    return order if sorted(order) == list(range(len(out.shape))) else []
