"""Rounds an operand once where several products of a graph read it along the same axis.

`trn.round_operand` gives what the products would round it to, in bfloat16, which holds every value
of the formats; the products then take it as given. No bit of a result changes.
"""

from collections import defaultdict
from typing import Any

import torch
from torch.fx import Graph, Node

__all__ = ["round_once"]

trn = torch.ops.trn
Use = tuple[Node, int]  # a product and which of its operands


def round_once(graph: Graph, least_uses: int = 2) -> int:
    """Insert a rounding where an operand has `least_uses` with one format and axis.

    Returns the number of roundings that products no longer do.
    """
    uses: dict[tuple[Node, str, int], list[Use]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_function" and node.target is trn.product.default:
            for position in (0, 1):
                if (key := _rounded(node, position)) is not None:
                    uses[key].append((node, position))
    saved = 0
    for (operand, form, dim), places in uses.items():
        if len(places) >= least_uses:
            _share(graph, operand, form, dim, places)
            saved += len(places) - 1
    return saved


def _rounded(node: Node, position: int) -> tuple[Node, str, int] | None:
    """What an operand is rounded to, named by the tensor before transposition and its axis."""
    operand, form = node.args[position], node.args[2 + position]
    if not isinstance(operand, Node) or operand.meta["val"].dim() not in (2, 3):
        return None
    if not str(form).startswith("mx"):  # bfloat16 rounds as fast as it is read
        return None
    dim = -1 if position == 0 else -2
    base = _untransposed(operand)
    return (base, str(form), dim) if base is operand else (base, str(form), -3 - dim)


def _untransposed(operand: Node) -> Node:
    rank = operand.meta["val"].dim()
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    aten = torch.ops.aten
    if operand.target is aten.permute.default and list(operand.args[1]) == swapped:  # type: ignore[arg-type]
        return operand.args[0]  # type: ignore[return-value]
    if operand.target is aten.t.default:
        return operand.args[0]  # type: ignore[return-value]
    return operand


def _share(graph: Graph, operand: Node, form: str, dim: int, places: list[Use]) -> None:
    first = min((node for node, _ in places), key=_order(graph))
    with graph.inserting_before(first):
        rounded = graph.call_function(trn.round_operand.default, (operand, form, dim))
        rounded.meta = {"val": operand.meta["val"].to(torch.bfloat16)}
    for node, position in places:
        arguments: list[Any] = list(node.args)
        straight = node.args[position] is operand
        arguments[position] = rounded if straight else _transposed(graph, node, rounded)
        arguments[2 + position] = "as_given"
        node.args = tuple(arguments)


def _transposed(graph: Graph, before: Node, rounded: Node) -> Node:
    rank = rounded.meta["val"].dim()
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    with graph.inserting_before(before):
        node = graph.call_function(torch.ops.aten.permute.default, (rounded, swapped))
    node.meta = {"val": rounded.meta["val"].permute(swapped)}
    return node


def _order(graph: Graph) -> Any:
    position = {node: k for k, node in enumerate(graph.nodes)}
    return lambda node: position[node]
