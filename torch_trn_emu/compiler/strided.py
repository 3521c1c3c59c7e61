"""Copies that only lay rows one after the other for a product, which reads them where they are.

A product's DMA loads rows by their stride. Heads that a transposition parts, or that several
queries share, need no copy, as long as each row is contiguous and long enough for a descriptor.
"""

from collections.abc import Iterator

import torch
from torch.fx import Graph, Node

from ..calls import DTYPES
from ..formats import FORMATS
from .calls import STRIDED, tensor_of
from .region import users_of

__all__ = ["mark_strided"]

aten = torch.ops.aten

LEAST_BYTES = 512  # of a row: from there on a descriptor is efficient (nki-dma-bandwidth-guide)
_PRODUCTS = frozenset((aten.mm.default, aten.bmm.default, torch.ops.trn.product.default))


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
    source, to = (tensor_of(n.meta.get("val")) for n in (node.args[0], node))  # type: ignore[union-attr]
    if source is None or to is None or not source.shape or not to.contiguous:
        return False
    held = FORMATS.get(DTYPES.get(source.torch_dtype, ""))
    if source.on_host or to.on_host or held is None:
        return False
    row = source.shape[-1] * held.storage_bytes
    return source.strides[-1] == 1 and row >= LEAST_BYTES
