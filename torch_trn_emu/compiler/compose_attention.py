"""Puts attention together that is spelled out in products and a softmax, for the engines.

softmax(q @ k.mT * scale + mask) @ v is one program if nothing else reads what lies in between: no
gradient does in inference. Values stay those of the steps. Checked on torch 2.13.0.

That the vendor's compiler does so is inferred from whole encoders of 128 tokens, whose attention is
spelled out (benchmarks/data); with 4,096 keys it leaves every step in HBM (row com11).
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from .operators import policy_of

__all__ = ["attention_composed"]

aten = torch.ops.aten
_CAST = torch.ops.prims.convert_element_type.default
_VIEWS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.alias.default,
)
_SUMS = (aten.sum.dim_IntList,)
MOST_KEYS = 2048  # chosen, between the measured ones
_FUSED = aten._scaled_dot_product_flash_attention_for_cpu.default


@dataclass(slots=True)
class _Found:
    """An attention of a graph: its last product, its operands, and what lies in between."""

    last: Node
    q: Node
    k: Node  # turned: [..., head_dim, keys]
    v: Node
    scale: float = 1.0
    mask: Node | None = None
    inside: set[Node] = field(default_factory=set)


def attention_composed(graph: Graph, policy: str) -> Graph:
    """The graph with each attention as one node; itself if it has none, else a copy.

    Under a policy that quantizes attention its products are apart.
    """
    if not any(_is_fused(found, policy) for found in _attentions(graph)):
        return graph
    copy = Graph()
    copy.output(copy.graph_copy(graph, {}))
    for found in list(_attentions(copy)):
        if _is_fused(found, policy):
            _replace(copy, found)
    copy.eliminate_dead_code()
    return copy


def _is_fused(found: _Found, policy: str) -> bool:
    few = bool(found.k.meta["val"].shape[-1] <= MOST_KEYS)
    return few and policy_of(found.last, policy) != "mxfp8_all"


def _attentions(graph: Graph) -> Iterator[_Found]:
    for node in graph.nodes:
        if node.target is aten.bmm.default and (found := _attention_at(node)) is not None:
            yield found


def _attention_at(last: Node) -> _Found | None:
    """The attention that ends with this product."""
    found = _Found(last, last, last, last)  # operands follow
    weights, v = last.args
    softmax = _through(weights, found)
    logits = _logits(softmax, found) if softmax is not None else None
    scores = _scores(logits, found) if logits is not None else None
    if scores is None or scores.target is not aten.bmm.default:
        return None
    found.inside.add(scores)
    (found.q, found.k), found.v = scores.args, v  # type: ignore[assignment]
    own = {*found.inside, last}
    return found if all(set(n.users) <= own for n in found.inside) else None


def _through(node: Any, found: _Found) -> Node | None:
    """What views and casts read."""
    while isinstance(node, Node) and (node.target in _VIEWS or node.target is _CAST):
        found.inside.add(node)
        node = node.args[0]
    return node if isinstance(node, Node) else None


def _logits(node: Node, found: _Found) -> Node | None:
    """What a softmax over the last dimension is of."""
    if node.target is aten._softmax.default and node.args[1] in (-1, _dims(node) - 1):
        found.inside.add(node)
        return node.args[0]  # type: ignore[return-value]
    if node.target is not aten.div.Tensor:
        return None
    exp, total = node.args
    if not (isinstance(exp, Node) and isinstance(total, Node)):
        return None
    if exp.target is not aten.exp.default or total.target not in _SUMS or total.args[0] is not exp:
        return None
    less = exp.args[0]
    if not isinstance(less, Node) or less.target is not aten.sub.Tensor:
        return None
    x, top = less.args
    if not isinstance(top, Node) or top.target is not aten.amax.default or top.args[0] is not x:
        return None
    if any(list(n.args[1]) not in ([-1], [_dims(node) - 1]) for n in (total, top)):  # type: ignore[arg-type]
        return None
    found.inside |= {node, exp, total, less, top}
    return x  # type: ignore[return-value]


def _scores(node: Node | None, found: _Found) -> Node | None:
    """The product behind what scales and masks it."""
    while (node := _through(node, found)) is not None and node.target is not aten.bmm.default:
        first, *rest = node.args
        if node.target in (aten.mul.Tensor, aten.div.Tensor) and isinstance(rest[0], (int, float)):
            found.scale *= rest[0] if node.target is aten.mul.Tensor else 1 / rest[0]
        elif found.mask is None and node.target is aten.add.Tensor and isinstance(rest[0], Node):
            first, found.mask = sorted((first, rest[0]), key=_elements, reverse=True)  # type: ignore[assignment]
        elif found.mask is None and node.target is aten.where.self:
            found.mask, (_, first) = first, rest  # type: ignore[assignment]
        else:
            return None
        found.inside.add(node)
        node = first  # type: ignore[assignment]
    return node


def _dims(node: Node) -> int:
    return node.meta["val"].dim()  # type: ignore[no-any-return]


def _elements(node: Any) -> int:
    return node.meta["val"].numel() if isinstance(node, Node) else 0


def _whole(node: Node) -> Node:
    """An operand before its batch and heads became one dimension, a copy seen through."""
    wanted = node.meta["val"].shape
    found = node
    while node.target in _VIEWS or node.target is aten.clone.default:
        node = node.args[0]  # type: ignore[assignment]
        shape = node.meta["val"].shape
        if len(shape) == 4 and shape[2:] == wanted[1:] and prod(shape[:2]) == wanted[0]:
            found = node
    return found


def _replace(graph: Graph, found: _Found) -> None:
    """Put one node of attention in the place of a product and what led to it."""
    last = found.last
    operands = [_whole(n) for n in (found.q, found.k, found.v)]
    q = operands[0].meta["val"]
    if len({n.meta["val"].shape[:-2] for n in operands}) > 1 or q.dim() != 4:
        operands, q = [found.q, found.k, found.v], found.q.meta["val"]
    value = last.meta["val"]
    with graph.inserting_before(last):
        k = graph.call_function(aten.transpose.int, (operands[1], -2, -1))
        k.meta = {"val": operands[1].meta["val"].mT}
        arguments = (operands[0], k, operands[2], 0.0, False)
        named: dict[str, Any] = {"attn_mask": found.mask, "scale": found.scale}
        node = graph.call_function(_FUSED, arguments, named)
        made = value.view(*q.shape[:-1], value.shape[-1])
        node.meta = {**last.meta, "val": (made, None)}
        out = graph.call_function(operator.getitem, (node, 0))
        out.meta = {**last.meta, "val": made}
        flat = graph.call_function(aten.view.default, (out, list(value.shape)))
        flat.meta = dict(last.meta)
    last.replace_all_uses_with(flat)
    graph.erase_node(last)
