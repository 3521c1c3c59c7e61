"""Rounds an operand once where several products of a graph read it along the same axis.

`trn.round_operand` gives what the products would round it to, in bfloat16, which holds every value
of the formats; the products then take it as given. No bit of a result changes.
"""

from collections import defaultdict
from typing import Any

import torch
from torch.fx import Graph, Node

from .graphs import added

__all__ = ["Use", "round_once", "rounded_operands", "take_as_given"]

aten, trn = torch.ops.aten, torch.ops.trn
Use = tuple[Node, int]  # a product and which of its operands


def round_once(graph: Graph, least_uses: int = 2) -> int:
    """Insert a rounding where an operand has `least_uses` with one format and axis.

    Returns the number of roundings that products no longer do.
    """
    saved = 0
    for (operand, form, dim), places in rounded_operands(graph).items():
        if len(places) >= least_uses:
            with graph.inserting_before(places[0][0]):
                rounded = added(graph, trn.round_operand.default, operand, form, dim)
            take_as_given(graph, operand, rounded, places)
            saved += len(places) - 1
    return saved


def rounded_operands(graph: Graph) -> dict[tuple[Node, str, int], list[Use]]:
    """What products round to MX: a tensor before transposition, its format, and the axis, negative.

    The products that read it stand in the order of the graph.
    """
    uses: dict[tuple[Node, str, int], list[Use]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_function" and node.target is trn.product.default:
            for position in (0, 1):
                if (key := _rounded(node, position)) is not None:
                    uses[key].append((node, position))
    return uses


def _rounded(node: Node, position: int) -> tuple[Node, str, int] | None:
    operand, form = node.args[position], node.args[2 + position]
    if not isinstance(operand, Node) or operand.meta["val"].dim() not in (2, 3):
        return None
    if not str(form).startswith("mx"):  # bfloat16 rounds as fast as it is read
        return None
    dim = -1 if position == 0 else -2
    base = _untransposed(operand)
    return (base, str(form), dim) if base is operand else (base, str(form), -3 - dim)


def _untransposed(operand: Node) -> Node:
    order: Any = operand.args[1] if operand.target is aten.permute.default else ()
    swaps = operand.target is aten.t.default or list(order) == _swapped(operand)
    return operand.args[0] if swaps else operand  # type: ignore[return-value]


def _swapped(operand: Node) -> list[int]:
    """The order of dimensions in which the last two have changed places."""
    rank = operand.meta["val"].dim()
    return [*range(rank - 2), rank - 1, rank - 2]


def take_as_given(graph: Graph, operand: Node, rounded: Node, places: list[Use]) -> None:
    """Products that rounded `operand`, straight or transposed, read `rounded` as it is."""
    for node, position in places:
        arguments: list[Any] = list(node.args)
        straight = node.args[position] is operand
        arguments[position] = rounded if straight else _transposed(graph, node, rounded)
        arguments[2 + position] = "as_given"
        node.args = tuple(arguments)


def _transposed(graph: Graph, before: Node, rounded: Node) -> Node:
    with graph.inserting_before(before):
        return added(graph, aten.permute.default, rounded, _swapped(rounded))
