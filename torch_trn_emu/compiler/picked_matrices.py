"""Matrices that a graph picks from a table for a batch of products: the product loads them itself.

`bmm(x, table[index])` with indices of the first dimension, as mixtures of experts have it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import torch
from torch.fx import Node

from ..calls import Call, Target
from ..ops import Product, multiplied, product_of
from .calls import call_of
from .nodes import maker_of

__all__ = ["Picks", "of_picked", "picked_later", "picks_for"]


@dataclass(frozen=True, slots=True)
class Picks:
    """The nodes of table and indices, and how many matrices the table has."""

    table: str
    index: str
    matrices: int


def picks_for(product: Node, call: Call, target: Target) -> Picks | None:
    """What the second factors of a batch of products are picked from, for it alone."""
    factors = product.all_input_nodes
    if call.name != "bmm" or len(factors) < 2:
        return None
    node = factors[1]
    if len(node.users) > 1 or node.target is not torch.ops.aten.index.Tensor:
        return None
    table, given = node.args[0], node.args[1]
    if not isinstance(table, Node) or not isinstance(given, (list, tuple)) or len(given) != 1:
        return None
    (index,) = given
    if not isinstance(index, Node) or not isinstance(table.meta.get("val"), torch.Tensor):
        return None
    values, indices = table.meta["val"], index.meta.get("val")
    if not isinstance(indices, torch.Tensor) or indices.dtype not in (torch.int32, torch.int64):
        return None
    if values.dim() != 3 or not values.is_contiguous() or indices.dim() != 1:
        return None
    found = Picks(maker_of(table).name, maker_of(index).name, int(values.shape[0]))
    return found if _can_pick(call, found.matrices, target) else None


def picked_later(node: Node, call: Call, target: Target) -> bool:
    """Whether the product that reads what a node picks does the picking."""
    if call.name != "index" or len(node.users) != 1:
        return False
    (user,) = node.users
    made = call_of(user, call.policy)
    return made is not None and picks_for(user, made, target) is not None


def of_picked(product: Product, matrices: int) -> Product:
    """The product whose second operand is a table. Its values have no labels: a price alone."""
    options = MappingProxyType({**product.options, "picked": matrices})
    return replace(product, options=options, as_asked=False)


@lru_cache(maxsize=4096)
def _can_pick(call: Call, matrices: int, target: Target) -> bool:
    """Whether the array's format and the plan of the product let it."""
    try:
        return bool(multiplied(of_picked(product_of(call, target), matrices), target))
    except KeyError:
        return False
