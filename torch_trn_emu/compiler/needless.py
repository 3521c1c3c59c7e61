"""Nodes of a graph that no program computes: nothing that has elements is made of them.

The indices of a padding or of windows of an empty tensor, say, which a decomposition spells out.
"""

from torch import Tensor
from torch.fx import Graph, Node

from ..torch_private import OpOverload, tree_leaves
from .calls import tensor_of

__all__ = ["needless"]

_PURE = ("aten", "prims")  # namespaces of operators that do no more than they return


def needless(graph: Graph) -> frozenset[Node]:
    """Those that only nodes without elements read, directly or by others of them, or nothing."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if _is_pure(node) and all(u in found or _makes_nothing(u) for u in node.users):
            found.add(node)
    return frozenset(found)


def _is_pure(node: Node) -> bool:
    if getattr(node.target, "__name__", "") == "getitem":
        return True
    target = node.target
    return (
        isinstance(target, OpOverload)
        and target.namespace in _PURE
        and not target._schema.is_mutable
    )


def _makes_nothing(node: Node) -> bool:
    made = [t for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    described = [tensor_of(t) for t in made]
    return _is_pure(node) and bool(made) and all(t is not None and not t.numel for t in described)
