"""Entries of a graph's input that are written in place, as the user wrote it.

Functionalization makes a filled copy of the input and, at the end, copies that back. The chip
writes the entries where they are: a cache of keys is not moved for each token.
"""

from collections.abc import Iterable, Mapping

import torch
from torch.fx import Node

from .calls import tensor_of
from .nodes import base_of

__all__ = ["fills_in_place", "is_written_back", "places_of"]

aten = torch.ops.aten

# Operators that write entries of a copy of their first operand.
_FILLED = frozenset("scatter scatter_add scatter_reduce index_put index_add index_copy".split())


def fills_in_place(node: Node) -> bool:
    """Whether an operator of _FILLED may write where its first operand is.

    It may if it alone reads what the graph made for it, or an input that gets the result back.
    """
    base = _filled(node)
    if base is None:
        return False
    if base.op == "placeholder":
        return _back(base) is not None
    return base.op == "call_function" and len(base.users) == 1


def is_written_back(node: Node) -> bool:
    """Whether a node copies to an input what was written there already, or what it is."""
    given = node.args[0] if node.args else None
    if not isinstance(given, Node) or given.op != "placeholder":
        return False
    return _back(given) is node or (node.target is aten.copy_.default and node.args[1] is given)


def places_of(nodes: Iterable[Node]) -> Mapping[str, str]:
    """Of operators that fill in place, in the order of the graph, where: the tensor's name."""
    found: dict[str, str] = {}
    for node in nodes:
        base = _filled(node)
        if base is not None and fills_in_place(node):
            found[node.name] = found.get(base.name, base.name)
    return found


def _back(given: Node) -> Node | None:
    """The copy to an input of what has filled it, step by step; None if anything else reads it."""
    copies = [n for n in given.users if n.target is aten.copy_.default and n.args[0] is given]
    if len(copies) != 1 or len(given.users) != 2:
        return None
    source = copies[0].args[1]
    if not isinstance(source, Node) or tensor_of(source) != tensor_of(given):
        return None
    while (before := _filled(source)) is not None:
        if before is given:
            return copies[0]
        if len(before.users) > 1:
            return None
        source = before
    return None


def _filled(node: Node) -> Node | None:
    """What an operator of _FILLED fills a copy of."""
    first = node.args[0] if node.args else None
    fills = getattr(node.target, "_opname", "") in _FILLED
    return base_of(first)[0] if fills and isinstance(first, Node) else None
