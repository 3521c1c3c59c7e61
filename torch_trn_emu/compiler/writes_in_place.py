"""Keeps Inductor from writing in place where that changes a value.

An operator that copies its first argument and writes into the copy becomes one that writes into the
argument itself, where nothing reads that later. That is wrong for

- an expanded tensor, such as the zeros that `vmap` shares between samples: all samples would add
  into one (`separate_overlaps`);
- an input that changes again later, in the loop that writes the later changes (`write_apart`);
- a value that the graph returns, of which Inductor drops a clone: `x[1] = 0; before = x.clone();
  x[0] = 1; return before` would return x (`keep_versions`).

Checked on torch 2.13.0, `reinplace_inplaceable_ops` of `_inductor/fx_passes/reinplace.py`.
"""

from contextlib import AbstractContextManager
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..torch_private import OpOverload, tree_map_only
from .graphs import added
from .own_passes import passes_added

__all__ = ["keep_versions", "separate_overlaps", "versions_kept", "write_apart"]

aten = torch.ops.aten

_WRITING = frozenset(
    (
        "index_put _unsafe_index_put index_add index_copy index_fill index_reduce scatter "
        "scatter_add scatter_reduce masked_scatter put slice_scatter select_scatter "
        "diagonal_scatter as_strided_scatter"
    ).split()
)


def _writes(node: Any) -> bool:
    """Whether Inductor may let the operator write into its first argument."""
    target = getattr(node, "target", None)
    return (
        isinstance(target, OpOverload)
        and target.namespace == "aten"
        and (target._opname in _WRITING or target._opname.startswith("_foreach_"))
    )


# --- elements that share a place ------------------------------------------------------------------


def _overlaps(x: Any) -> bool:
    """Whether elements may share a place; sizes that are not known count as more than one."""
    if not isinstance(x, Tensor):
        return False
    known = torch.fx.experimental.symbolic_shapes.guard_or_false
    reach = 1
    pairs = sorted(
        ((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if not known(n == 1)),
        key=lambda pair: _hint(pair[0]),
    )
    for stride, size in pairs:
        if known(stride < reach):
            return True
        reach = stride * (size - 1) + reach
    return False


def _hint(value: Any) -> int:
    return value if isinstance(value, int) else value.node.hint or 0


def separate_overlaps(graph: Graph) -> None:
    """Copy what such operators would write into, where its elements overlap.

    Changes no value: the operators copy their argument anyway.
    """
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        if _writes(node) and isinstance(first, Node) and _overlaps(first.meta.get("val")):
            with graph.inserting_before(node):
                dense = {"memory_format": torch.contiguous_format}
                copy = added(graph, aten.clone.default, first, like=first, **dense)
            node.args = (copy, *node.args[1:])


# --- values that change later ---------------------------------------------------------------------


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


def _is_changed(root: Node) -> bool:
    """Whether an operator takes the value, or a view of it, and gives a changed copy of it."""
    family = [root]
    for member in family:
        if any(map(_writes, member.users)):
            return True
        family += (user for user in member.users if _views_storage(user) and user not in family)
    return False


def keep_versions(graph: Graph) -> None:
    """Return copies of what is written to later, in a graph that mutates inputs.

    Changes no value. Runs where clones are no longer dropped.
    """
    copies: dict[Node, Node] = {}

    def kept(leaf: Node) -> Node:
        root = _root(leaf)  # what an operator has written, or one of the list that it gives
        written = _writes(root) or (root.target is getitem and _writes(root.args[0]))
        if leaf not in copies and written and _is_changed(root):
            with graph.inserting_after(leaf):
                copies[leaf] = added(graph, aten.clone.default, leaf, like=leaf)
        return copies.get(leaf, leaf)

    if any(node.target is aten.copy_.default for node in graph.nodes):
        output = graph.output_node()
        output.args = tree_map_only(Node, kept, output.args)


def write_apart(graph: Graph) -> None:
    """Write indices into a copy of an input that changes again later. Changes no value."""
    for copied in [node for node in graph.nodes if node.target is aten.copy_.default]:
        given, last = copied.args[:2]
        while isinstance(last, Node) and last.target is aten.index_put.default:
            last = last.args[0]
        if last is given:
            continue
        for node in [user for user in given.users if user.target is aten.index_put.default]:
            with graph.inserting_before(node):
                copy = added(graph, aten.clone.default, given, like=given)
            node.args = (copy, *node.args[1:])


def versions_kept() -> AbstractContextManager[None]:
    """Compile with `write_apart` and `keep_versions`, after the user's own passes."""
    return passes_added("post_grad_custom_post_pass", write_apart, keep_versions)
