"""Puts attention together that is spelled out in products and a softmax, for the engines.

softmax(q @ k.mT * scale + mask) @ v is one program if nothing else reads what lies in between: no
gradient does in inference. Values stay those of the steps. Keys and values that are copied for each
head of a group, and copies into another layout, the engines do not need. A mask that comes out as
causal is read as any other: prefill is measured to take no less time. Checked on torch 2.13.0.

That the vendor's compiler does so is inferred from whole encoders of 128 tokens, whose attention is
spelled out (benchmarks/data); with 4,096 keys it leaves every step in HBM (row com11).
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import Module

from .apply_precision import policy_of
from .attention_copies import copied_order, read_as_copied
from .attention_operands import (
    Operand,
    laid_by_head,
    merge_permutes,
    operand_of,
    together,
)
from .constants import Constants
from .graphs import added, copied
from .nodes import is_in_order, sizes_of

__all__ = ["attention_composed"]

aten = torch.ops.aten
_CAST = torch.ops.prims.convert_element_type.default
_SUMS, _MAXIMA = (aten.sum.dim_IntList,), (aten.amax.default, aten.max.dim)
MOST_KEYS = 2048  # chosen, between the measured ones
_ITEM = operator.getitem
HIDES = -1e4  # the largest number that hides a score in whose place it is put (chosen)
_FUSED = aten._scaled_dot_product_flash_attention_for_cpu.default


@dataclass(frozen=True, slots=True)
class _Found:
    """What has been walked through from an attention's last product, and where that has led."""

    node: Any
    scale: float = 1.0
    masks: tuple[tuple[Node, tuple[int, ...]], ...] = ()  # and the sizes of what each masks
    inside: frozenset[Node] = field(default_factory=frozenset)

    @property
    def takes_numbers(self) -> bool:
        """Whether what is added here is added to scores: nothing is done to them but that."""
        return self.scale == 1 and all(m.meta["val"].dtype != torch.bool for m, _ in self.masks)

    def masked(self, mask: Any) -> "_Found":
        return replace(self, masks=(*self.masks, (mask, sizes_of(self.node))))

    def to(self, node: Any, *passed: Node, **changed: Any) -> "_Found":
        return replace(self, node=node, inside=self.inside.union(passed, [self.node]), **changed)


def attention_composed(graph: Graph, module: Module, policy: str) -> Graph:
    """The graph with each attention as one node; itself if it has none, else a copy.

    module  holds the graph's attributes
    policy  under one that quantizes attention its products are apart
    """
    if not any(n.target in (aten.bmm.default, _FUSED) for n in graph.nodes):
        return graph
    copy = copied(graph)
    merge_permutes(copy)
    composer = _Composer(copy, Constants(module))
    changed = sum(composer.compose(node, policy) for node in list(copy.nodes))
    copy.eliminate_dead_code()
    if not changed + composer.leave_out_copies():
        return graph
    copy.eliminate_dead_code()
    return copy


class _Composer:
    def __init__(self, graph: Graph, constants: Constants) -> None:
        self.graph, self.constants = graph, constants

    def compose(self, node: Node, policy: str) -> bool:
        """Whether an attention ends with the node and is another one now."""
        if node.target is _FUSED:
            return self._group(node)
        if node.target is not aten.bmm.default or policy_of(node, policy) == "mxfp8_all":
            return False
        for softmax in self._softmax(_Found(node.args[0])):
            for found in self._scores(softmax):
                own = {*found.inside, node}
                few = sizes_of(found.node)[-1] <= MOST_KEYS
                return (
                    few
                    and all(set(n.users) <= own for n in own - {node})
                    and self._replace(node, found)
                )
        return False

    # --- from the last product to the first ---

    def _softmax(self, found: _Found) -> Iterator[_Found]:
        """What a softmax over the last dimension is of."""
        found = _seen_through(found)
        node = found.node
        if node.target is aten._softmax.default and _is_last(node.args[1], node):
            yield found.to(node.args[0])
        if node.target is not aten.div.Tensor:
            return
        exp, total = node.args
        if getattr(exp, "target", None) is aten.exp.default and _reduces(total, _SUMS, exp):
            less: Any = exp.args[0]
            x: Any
            top: Any
            x, top = less.args[:2] if less.target is aten.sub.Tensor else (None, None)
            largest = top.args[0] if getattr(top, "target", None) is _ITEM else top
            if _reduces(largest, _MAXIMA, x):
                yield found.to(x, exp, total, less, top, largest)

    def _scores(self, found: _Found) -> Iterator[_Found]:
        """The product behind what scales and masks it."""
        found = _seen_through(found)
        node = found.node
        if node.target is aten.bmm.default:
            yield found.to(node)
        elif node.target is aten.baddbmm.default:
            beta, alpha = (node.kwargs.get(name, 1) for name in ("beta", "alpha"))
            if beta == 0:
                yield found.to(node, scale=found.scale * alpha)
            elif beta == 1 and found.takes_numbers:
                yield found.masked(node.args[0]).to(node, scale=alpha)
        elif node.target in (aten.mul.Tensor, aten.div.Tensor):
            x, number = self.constants.multiplied(node)
            if number is not None:
                yield from self._scores(found.to(x, scale=found.scale * number))
        elif node.target is aten.add.Tensor and found.takes_numbers:
            for x, mask in (node.args[:2], node.args[1::-1]):
                if isinstance(x, Node) and _is_of_numbers(mask):
                    yield from self._scores(found.masked(mask).to(x))
        elif node.target is aten.where.self and not found.masks:
            mask, a, b = node.args
            for x, other in ((b, a), (a, b)):
                number = self.constants.number(other)
                if number is not None and number * found.scale <= HIDES:
                    yield from self._scores(found.masked(mask).to(x))

    # --- what takes their place ---

    def _replace(self, last: Node, found: _Found) -> bool:
        """Put one node of attention in the place of a product and what led to it."""
        products: Any = (*found.node.args[-2:], last.args[1])
        keys = sizes_of(found.node)[-1]
        with self.graph.inserting_before(last):
            q, k, v, scale = self._operands(products, found.masks)
            if q is None or k is None or v is None:
                return False
            shape = (*sizes_of(q)[:-1], keys)
            masks = [laid_by_head(self.graph, mask, over, shape) for mask, over in found.masks]
            if None in masks:
                return False
            total = reduce(partial(added, self.graph, aten.add.Tensor), masks or [None])
            given = {"attn_mask": total, "scale": found.scale * scale}
            node = self.graph.call_function(_FUSED, (q, k, v, 0.0, False), given)
            self._put(last, node)
        return True

    def _put(self, last: Node, attention: Any) -> None:
        """Let others read an attention instead of a product."""
        value, q = last.meta["val"], attention.args[0].meta["val"]
        made = value.view(*q.shape[:-1], value.shape[-1])
        attention.meta = {**last.meta, "val": (made, None)}
        out = added(self.graph, _ITEM, attention, 0, like=last)
        flat = added(self.graph, aten.view.default, out, list(value.shape), like=last)
        last.replace_all_uses_with(flat)

    def leave_out_copies(self) -> int:
        """Let attention read and store heads where they lie. Returns how many copies that saves."""
        nodes: Any = self.graph.find_nodes(op="call_function", target=_FUSED)
        return sum(read_as_copied(self.graph, n) + self._store_as_copied(n) for n in nodes)

    def _store_as_copied(self, attention: Node) -> int:
        """Have a result in memory as all that reads it copies it: rows before heads, say."""
        out = next((user for user in attention.users if user.args[1:] == (0,)), None)
        order, copies = copied_order(out) if out is not None else ([], [])
        if out is None or not copies or order[-1] != len(order) - 1:
            return 0
        stored = out.meta["val"].permute(order).contiguous()
        made = stored.permute([order.index(d) for d in range(len(order))])
        attention.meta["val"] = (made, *attention.meta["val"][1:])
        out.meta["val"] = made
        with self.graph.inserting_after(out):
            whole = added(self.graph, aten.permute.default, out, order, like=out)
        for node in copies:
            sizes = list(node.meta["val"].shape)
            with self.graph.inserting_before(node):
                view = added(self.graph, aten.view.default, whole, sizes, like=node)
            node.replace_all_uses_with(view)
        return len(copies)

    def _operands(self, products: Any, masks: Sequence[Any]) -> Any:
        """Query, keys and values, by batch and head if they lie so, and what multiplies scores."""
        numbers = (self.constants, self.constants, None)
        for rank in (4, 3):
            found = [operand_of(n, c, rank) for n, c in zip(products, numbers, strict=True)]
            if together(found):
                break
        lead = next((sizes[:-2] for _, sizes in masks if len(sizes) == 4), ())
        turned = (False, True, False)
        placed = (o.placed(self.graph, lead, t) for o, t in zip(found, turned, strict=True))
        return *placed, found[0].factor * found[1].factor

    def _group(self, node: Node) -> bool:
        """Let an attention read keys and values once that are copied for each head of a group."""
        q, *pair = node.args[:3]
        found = [Operand(q), *(operand_of(n, None, 4) for n in pair)]  # type: ignore[arg-type]
        if not together(found) or any(o.repeats == 1 for o in found[1:]):
            return False
        with self.graph.inserting_before(node):
            placed = (o.placed(self.graph, (), False) for o in found[1:])
            node.args = (q, *placed, *node.args[3:])
        return True


def _is_of_numbers(mask: Any) -> bool:
    return isinstance(mask, Node) and bool(mask.meta["val"].is_floating_point())


def _seen_through(found: _Found) -> _Found:
    """Past casts, and views that keep the last dimension but for those of one element."""
    while (node := found.node).target is _CAST or (is_in_order(node) and _keeps_last(node)):
        found = found.to(node.args[0])
    return found


def _keeps_last(node: Node) -> bool:
    source: Any = node.args[0]
    made, read = ([n for n in sizes_of(x) if n != 1] for x in (node, source))
    return made[-1:] == read[-1:]


def _reduces(node: Any, targets: tuple[Any, ...], x: Any) -> bool:
    """Whether a node is a reduction of x over its last dimension."""
    return (
        getattr(node, "target", None) in targets and node.args[0] is x and _is_last(node.args[1], x)
    )


def _is_last(dims: Any, x: Node) -> bool:
    given = dims if isinstance(dims, (list, tuple)) else [dims]
    return list(given) in ([-1], [len(sizes_of(x)) - 1])
