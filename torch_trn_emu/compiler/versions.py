"""Keeps what a graph returns of an input that it goes on writing to.

Inductor drops a clone of a value, then writes into that value in place although the graph returns
it: `x[1] = 0; before = x.clone(); x[0] = 1; return before` would return x. Checked on torch 2.13.0,
`reinplace_inplaceable_ops` of `_inductor/fx_passes/reinplace.py`.
"""

from contextlib import AbstractContextManager
from operator import getitem

import torch
from torch.fx import Graph, Node

from ..torch_private import OpOverload, tree_map_only
from .overlaps import writes
from .own_passes import passes_added

__all__ = ["keep_versions", "versions_kept", "write_apart"]

aten = torch.ops.aten


def _views_storage(node: Node) -> bool:
    """Whether the result is a view of the first argument."""
    target = node.target
    return isinstance(target, OpOverload) and any(
        returned.alias_info is not None and not returned.alias_info.is_write
        for returned in target._schema.returns
    )


def _root(node: Node) -> Node:
    while node.op == "call_function" and _views_storage(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _is_written(root: Node) -> bool:
    """Whether the value comes from such an operator, or from the list that it gives."""
    return writes(root) or (root.target is getitem and writes(root.args[0]))


def _is_changed(root: Node) -> bool:
    """Whether an operator takes the value, or a view of it, and gives a changed copy of it."""
    family, seen = [root], {root}
    for member in family:
        for user in member.users:
            if user in seen:
                continue
            seen.add(user)
            if writes(user):
                return True
            if user.op == "call_function" and _views_storage(user):
                family.append(user)
    return False


def keep_versions(graph: Graph) -> int:
    """Return copies of what is written to later, in a graph that mutates inputs. Returns how many.

    Changes no value. Runs where clones are no longer dropped.
    """
    if not any(node.target is aten.copy_.default for node in graph.nodes):
        return 0
    output = next(iter(reversed(graph.nodes)))
    copies: dict[Node, Node] = {}

    def kept(leaf: Node) -> Node:
        if leaf in copies:
            return copies[leaf]
        root, value = _root(leaf), leaf.meta.get("val")
        if not isinstance(value, torch.Tensor) or not _is_written(root) or not _is_changed(root):
            return leaf
        with graph.inserting_after(leaf):
            copy = graph.call_function(aten.clone.default, (leaf,))
        copy.meta = dict(leaf.meta)
        copy.meta["val"] = value.clone()
        copies[leaf] = copy
        return copy

    output.args = tree_map_only(Node, kept, output.args)
    return len(copies)


def write_apart(graph: Graph) -> int:
    """Write indices into a copy of an input that changes again later. Returns how many.

    Inductor would write into the input, then read it in the loop that writes the later changes.
    Changes no value.
    """
    count = 0
    for copied in [node for node in graph.nodes if node.target is aten.copy_.default]:
        given, last = copied.args[:2]
        while isinstance(last, Node) and last.target is aten.index_put.default:
            last = last.args[0]
        if last is given:
            continue
        for node in [user for user in given.users if user.target is aten.index_put.default]:
            with graph.inserting_before(node):
                copy = graph.call_function(aten.clone.default, (given,))
            copy.meta = dict(given.meta)
            copy.meta["val"] = given.meta["val"].clone()
            node.args = (copy, *node.args[1:])
            count += 1
    return count


def versions_kept() -> AbstractContextManager[None]:
    """Compile with `write_apart` and `keep_versions`, after the user's own passes."""
    return passes_added("post_grad_custom_post_pass", write_apart, keep_versions)
