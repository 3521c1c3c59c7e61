"""What attention is of: operands before batch and heads became one dimension, and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from .constants import Constants
from .graphs import added
from .nodes import is_in_order, sizes_of

__all__ = [
    "Operand",
    "laid_by_head",
    "merge_permutes",
    "operand_of",
    "together",
]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Operand:
    """A node that holds an operand's elements.

    factor   the number by which they are multiplied later
    turned   its last two dimensions change places later
    ones     dimensions of one element that it has too many
    repeats  how many neighbouring heads read the same
    """

    node: Node
    factor: float = 1.0
    turned: bool = False
    ones: tuple[int, ...] = ()
    repeats: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(n for d, n in enumerate(sizes_of(self.node)) if d not in self.ones)

    def placed(self, graph: Graph, lead: tuple[int, ...], turned: bool) -> Node | None:
        """The node without such dimensions, and turned; of three the first becomes those of `lead`.

        None if no strides give that.
        """
        node, sizes = self.node, self.sizes
        wanted = (*lead, *sizes[1:]) if len(sizes) == 3 and prod(lead) == sizes[0] else sizes
        if wanted != sizes_of(node):
            try:
                node = added(graph, aten.view.default, node, list(wanted))
            except (RuntimeError, ValueError):
                return None
        turns = turned != self.turned
        return added(graph, aten.transpose.int, node, -2, -1) if turns else node


def merge_permutes(graph: Graph) -> None:
    """Make one of two that follow each other: `einsum` moves dimensions to and fro."""
    nodes: Any = graph.find_nodes(op="call_function", target=aten.permute.default)
    for node in nodes:
        before, order = node.args
        if before.target is aten.permute.default:
            source, first = before.args
            node.args = (source, [first[d] for d in order])
            if not before.users:
                graph.erase_node(before)


def operand_of(node: Node, constants: Constants | None, rank: int) -> Operand:
    """What a product's operand is made of by views, copies and numbers that multiply it.

    The first in the graph of so many dimensions whose last two are the operand's.
    """
    tail, heads = sizes_of(node)[-2:], prod(sizes_of(node)[:-2])
    found = at = Operand(node)
    while True:
        if is_in_order(node) or _copies_rows(node):
            before: Any = node.args[0]
            times = _repeats(sizes_of(before), sizes_of(node))
            at = replace(at, repeats=at.repeats * times)
        elif _turns(node):
            before, times = node.args[0], 1
            at, tail = replace(at, turned=not at.turned), tail[::-1]
        else:
            before, number = constants.multiplied(node) if constants else (None, None)
            if number is None or before.meta["val"].dtype != node.meta["val"].dtype:
                return found
            at, times = replace(at, factor=at.factor * number), 1
        if not times:
            return found
        node = before
        ones = _too_many(sizes_of(node), rank, tail)
        at = replace(at, node=node, ones=ones or ())
        if ones is not None and prod(at.sizes[:-2]) * at.repeats == heads:
            found = at


def _copies_rows(node: Node) -> bool:
    """Whether it copies what has one of the last two dimensions in one piece already."""
    source: Any = node.args[0] if node.target is aten.clone.default else None
    return source is not None and 1 in source.meta["val"].stride()[-2:]


def _turns(node: Node) -> bool:
    """Whether a permutation exchanges the last two dimensions, but for those of one element."""
    if node.target is not aten.permute.default:
        return False
    given: Any = node.args
    moved = [d for d in given[1] if sizes_of(given[0])[d] != 1]
    return moved != sorted(moved) and [*moved[:-2], *moved[:-3:-1]] == sorted(moved)


def _repeats(sizes: Sequence[int], made: Sequence[int]) -> int:
    """How often a view repeats each head of [batch, heads, ...]; 0 if it repeats anything else."""
    if prod(sizes) == prod(made):
        return 1
    differ = [d for d, (n, m) in enumerate(zip(sizes, made, strict=False)) if n != m]
    alike = len(sizes) == len(made) and differ == [len(sizes) - 3] and len(sizes) in (4, 5)
    return made[differ[0]] if alike else 0


def _too_many(sizes: Sequence[int], rank: int, tail: Sequence[int]) -> tuple[int, ...] | None:
    """Dimensions of one element without which there are `rank`, the last two of them `tail`."""
    if len(sizes) < rank:
        return None
    ones = [d for d, n in enumerate(sizes) if n == 1]
    for dims in combinations(reversed(ones), len(sizes) - rank):
        if tuple(n for d, n in enumerate(sizes) if d not in dims)[-2:] == tuple(tail):
            return dims
    return None


def together(operands: Sequence[Operand]) -> bool:
    """Whether query, keys and values have the same batch, and keys are of one or more heads."""
    q, k, v = (o.sizes[:-2] for o in operands)
    return len(q) == len(k) == 2 and k == v and q[0] == k[0] and q[1] % k[1] == 0


def laid_by_head(
    graph: Graph, mask: Node, masked: tuple[int, ...], shape: tuple[int, ...]
) -> Node | None:
    """A mask of something of sizes `masked` as one of `shape`; None if it cannot be read so."""
    if (repeated := _before_repeats(mask, shape)) is not None:
        return repeated
    if masked == shape or prod(sizes_of(mask)[:-2]) == 1:
        return mask
    try:
        whole = added(graph, aten.expand.default, mask, list(masked))
        return added(graph, aten.view.default, whole, list(shape))
    except (RuntimeError, ValueError):  # no strides give that
        return None


def _before_repeats(mask: Any, shape: tuple[int, ...]) -> Node | None:
    """What was repeated for a mask of `shape`, of which this one is a copy or view; else None."""
    while sizes_of(mask) != shape:
        if not is_in_order(mask) and mask.target is not aten.clone.default:
            return None
        mask = mask.args[0]
    while mask.target in (aten.clone.default, aten.expand.default):
        mask = mask.args[0]
    return mask  # type: ignore[no-any-return]
