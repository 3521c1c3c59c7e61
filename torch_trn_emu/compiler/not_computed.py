"""Nodes of a graph that no program computes.

Some make nothing that has elements: the indices of a padding or of windows of an empty tensor, say,
which a decomposition spells out. Others are copies that only lay rows one after the other for a
product: its DMA loads rows by their stride, so that heads that a transposition parts, or that
several queries share, need no copy, as long as each row is contiguous and long enough for a
descriptor.
"""

from collections.abc import Iterator

import torch
from torch.fx import Graph, Node

from ..calls import DTYPES
from ..formats import FORMATS
from ..torch_private import tree_leaves
from .calls import STRIDED, tensor_of
from .nodes import is_item, is_pure, users_of

__all__ = ["mark_strided", "needless"]

aten = torch.ops.aten

LEAST_BYTES = 512  # of a row: from there on a descriptor is efficient (nki-dma-bandwidth-guide)
_PRODUCTS = frozenset((aten.mm.default, aten.bmm.default, torch.ops.trn.product.default))


def needless(graph: Graph) -> frozenset[Node]:
    """Those that only nodes without elements read, directly or by others of them, or nothing."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if _only_makes(node) and all(u in found or _makes_nothing(u) for u in node.users):
            found.add(node)
    return frozenset(found)


def _only_makes(node: Node) -> bool:
    return is_pure(node) or is_item(node)


def _makes_nothing(node: Node) -> bool:
    made = [t for value in tree_leaves(node.meta.get("val")) if (t := tensor_of(value)) is not None]
    return _only_makes(node) and bool(made) and not any(t.numel for t in made)


# --- copies for products --------------------------------------------------------------------------


def mark_strided(graph: Graph) -> None:
    """Mark the copies that no program makes: `base_of` sees through them."""
    for node in graph.nodes:
        if node.target is aten.clone.default and _is_of_rows(node) and _only_multiplied(node):
            node.meta[STRIDED] = True


def _only_multiplied(node: Node) -> bool:
    users = list(_readers(node))
    return bool(users) and all(user.target in _PRODUCTS for user in users)


def _readers(node: Node) -> Iterator[Node]:
    for user in users_of(node):
        if user.target is aten._unsafe_view.default:
            yield from _readers(user)
        else:
            yield user


def _is_of_rows(node: Node) -> bool:
    """Whether it copies long contiguous rows."""
    source, to = (tensor_of(n) for n in (node.args[0], node))
    if source is None or to is None or not source.shape or not to.contiguous:
        return False
    held = FORMATS.get(DTYPES.get(source.torch_dtype, ""))
    if source.on_host or to.on_host or held is None:
        return False
    row = source.shape[-1] * held.storage_bytes
    return source.strides[-1] == 1 and row >= LEAST_BYTES
