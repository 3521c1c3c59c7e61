"""Puts operators together again that were decomposed for the host, for the engines.

Inductor's decompositions spell an activation and its gradient out in arithmetic, which suits a CPU;
the Scalar engine has each as one instruction. What a user spells out in arithmetic stays as it is.
Checked on torch 2.13.0.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, Node

from .graphs import copied
from .whole_calls import note_of

__all__ = ["recovered"]

aten = torch.ops.aten

# An operator by its name, of which a copied graph has copies, and what its arithmetic ends with.
_WHOLE = MappingProxyType(
    {
        "aten.silu.default": (aten.silu.default, aten.div.Tensor),
        "aten.silu_backward.default": (aten.silu_backward.default, aten.mul.Tensor),
        "aten.gelu.default": (aten.gelu.default, aten.mul.Tensor),
        "aten.gelu_backward.default": (aten.gelu_backward.default, aten.mul.Tensor),
        "aten.log_sigmoid_forward.default": (aten.log_sigmoid_forward.default, aten.sub.Tensor),
        "aten.log_sigmoid_backward.default": (aten.log_sigmoid_backward.default, aten.mul.Tensor),
        "aten.softplus.default": (aten.softplus.default, aten.where.self),
        "aten.softplus_backward.default": (aten.softplus_backward.default, aten.where.self),
    }
)
_NUMBERED = (aten.softplus.default, aten.softplus_backward.default)
_CAST = torch.ops.prims.convert_element_type.default
_Key = tuple[str, int, tuple[str, ...]]
_FUNCTIONS = (aten.exp.default, aten.sigmoid.default, aten.erf.default, aten.tanh.default)


def recovered(graph: Graph) -> Graph:
    """The graph with activations as one node each; itself if it has none, else a copy.

    The nodes that one call became are put together if they read what the call reads and only the
    last value is read by others: a forward pass may keep another one for the backward pass.
    """
    if not any(_call_of(node) for node in graph.nodes):
        return graph
    copy = copied(graph)
    for call in _calls(copy):
        for backward in (False, True):
            parts = [n for n in call if _is_backward(n) == backward]
            if parts:
                _join(copy, parts, call)
    for node in reversed(copy.nodes):
        if not node.users and _call_of(node) is not None:
            copy.erase_node(node)
    return copy


def _calls(graph: Graph) -> list[list[Node]]:
    """The nodes of each of the user's calls.

    A backward graph computes parts of the forward call again; both have its number in autograd,
    which calls without gradients share.
    """
    found: dict[_Key, list[Node]] = defaultdict(list)
    by_number: dict[tuple[str, int], set[_Key]] = defaultdict(set)
    for node in graph.nodes:
        if (key := _call_of(node)) is None:
            continue
        found[key].append(node)
        if not _is_backward(node):
            by_number[key[:2]].add(key)
    for key in [k for k, nodes in found.items() if _is_backward(nodes[0])]:
        forward = by_number[key[:2]]
        if len(forward) == 1:
            found[key] = [*found.pop(forward.pop()), *found[key]]
    return list(found.values())


def _call_of(node: Node) -> _Key | None:
    """Operator, number in autograd and source of the call a node was made of, None for others."""
    made_of = _made_of(node)
    if made_of not in _WHOLE or str(node.target) == made_of:
        return None
    source = tuple(s.name for s in node.meta.get("from_node") or ())
    if _is_backward(node):
        made_of, source = made_of.replace("_backward", ""), ("gradient",)
    made_of = made_of.replace("_forward", "")
    return made_of, node.meta.get("seq_nr", -1), source


def _is_backward(node: Node) -> bool:
    return "backward" in _made_of(node)


def _made_of(node: Node) -> str:
    return str(node.meta.get("original_aten"))


def _join(graph: Graph, parts: Sequence[Node], call: Sequence[Node]) -> None:
    """Put the forward or the backward nodes of a call together."""
    own, last, x = set(call), parts[-1], _argument(call)
    op, end = _WHOLE[_made_of(last)]
    kept = [n for n in parts if any(user not in own for user in n.users) and _uncast(n) is not x]
    read = {_uncast(n, own) for part in parts for n in part.all_input_nodes} - own
    others = read - {x}  # the gradient
    backward = "backward" in str(op)  # which may read of the argument what the forward made of it
    if x is None or kept != [last] or (x not in read and not backward) or len(others) != backward:
        return
    functions = sum(n.target in _FUNCTIONS for n in parts)
    if _uncast(last).target is not end or functions > 1:  # two calls that nothing tells apart
        return
    by_tanh = "gelu" in str(op) and any(n.target is aten.tanh.default for n in call)
    numbers = _numbers(last) if op in _NUMBERED else ()
    if numbers is None:
        return
    with graph.inserting_after(last):
        given: tuple[Any, ...] = (*others, x, *numbers)
        new = graph.call_function(op, given, {"approximate": "tanh"} if by_tanh else {})
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)


def _numbers(node: Node) -> tuple[float, ...] | None:
    """Those that the call was given which a node was made of; None if they are not known."""
    note = note_of(node)
    if note is None or note.call is None:
        return None
    return tuple(a for a in note.call.arguments if isinstance(a, (int, float)))


def _argument(call: Sequence[Node]) -> Node | None:
    """The tensor that the activation's function is taken of."""
    node = next((n for n in call if n.target in _FUNCTIONS), None)
    while node in call:
        node = node.all_input_nodes[0]  # type: ignore[union-attr]  # it is a part's
    return node


def _uncast(node: Node, call: Collection[Node] | None = None) -> Node:
    """What a cast reads; of those of one call only, if that is given."""
    own = call is None or node in call
    return node.all_input_nodes[0] if node.target is _CAST and own else node
