"""Lets producers that feed products round their own result, where memory bounds them.

Checked on torch 2.13.0.
"""

import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .graphs import added
from .producers import Match, match_of
from .round_once import Use, rounded_operands, take_as_given

__all__ = ["fuse_producers"]

aten, prims = torch.ops.aten, torch.ops.prims

_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


@dataclass(frozen=True)
class _Read:
    """Products that read a producer's result along its last axis, through views."""

    operand: Node
    views: tuple[Node, ...]  # from the result to the operand; a cast of float32 to bfloat16 is none
    places: tuple[Use, ...]


def fuse_producers(graph: Graph) -> int:
    """Replace a producer of an MX operand by the operator that rounds its result. Returns how many.

    The producer computes what torch's operator computes; the product's values are those of the
    operand that it would round. The last axis must be the contraction's. A result that something
    else reads, the backward say, is kept.
    """
    reads: dict[Node, dict[str, list[_Read]]] = defaultdict(lambda: defaultdict(list))
    for (operand, form, dim), places in rounded_operands(graph).items():
        for node, views in _sources(operand) if dim == -1 else ():
            if node in reads or match_of(node) is not None:
                reads[node][form].append(_Read(operand, tuple(views), tuple(places)))
                break
    for node, by_form in reads.items():
        form, group = next(iter(by_form.items()))
        match = match_of(node)  # again: what it reads may have been replaced
        assert match is not None
        _replace(graph, match, form, group)
    return len(reads)


def _sources(operand: Node) -> Iterator[tuple[Node, list[Node]]]:
    """The operand and what it is a view of with the same last axis, as far as it goes."""
    views: list[Node] = []
    node = operand
    while node.op == "call_function":
        yield node, views[::-1]
        value, before = node.meta["val"], node.args[0] if node.args else None
        if not isinstance(before, Node) or not isinstance(source := before.meta.get("val"), Tensor):
            return
        if node.target in _VIEWS and source.dim() > 0 and value.dim() > 0:
            if not statically_known_true(source.shape[-1] == value.shape[-1]):
                return
            views.append(node)
        elif not (
            node.target is prims.convert_element_type.default
            and (source.dtype, value.dtype) == (torch.float32, torch.bfloat16)
        ):
            return
        node = before


def _replace(graph: Graph, match: Match, form: str, reads: list[_Read]) -> None:
    keywords = {**match.row.keywords, "format": form}
    if match.eps is not None:
        keywords["eps"] = match.eps
    with graph.inserting_before(_first_after(graph, match.inputs)):
        made = added(graph, match.row.operator, *match.inputs, **keywords, keep=True)
        items = [added(graph, operator.getitem, made, i) for i in range(len(match.results) + 1)]
    for read in reads:
        with graph.inserting_before(read.places[0][0]):
            rounded = items[0]
            for view in read.views:
                rounded = added(graph, view.target, rounded, *view.args[1:])
        take_as_given(graph, read.operand, rounded, list(read.places))
        _erase_unused(read.operand, match.results[0])
    for result, item in zip(match.results, items[1:], strict=True):
        outside = [user for user in result.users if user not in match.inner]
        for user in outside:
            user.replace_input_with(result, item)
    for node in (*reversed(match.inner), *reversed(items)):
        if not node.users:
            graph.erase_node(node)
    if items[1] not in made.users:
        made.update_kwarg("keep", False)
        value = made.meta["val"]
        made.meta["val"] = (value[0], None, *value[2:])


def _first_after(graph: Graph, inputs: tuple[Node, ...]) -> Node:
    """The first node behind all of these and the graph's arguments."""
    last = max(inputs)
    node = last.next
    while node.op == "placeholder":
        node = node.next
    return node


def _erase_unused(node: Node, end: Node) -> None:
    """Erase what led from `end` to the node and nobody reads any more."""
    while node is not end and not node.users:
        before = node.args[0]
        node.graph.erase_node(node)
        node = before  # type: ignore[assignment]
