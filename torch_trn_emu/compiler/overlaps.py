"""Keeps Inductor from writing in place into memory whose elements share a place.

An operator that copies its first argument and writes into the copy becomes one that writes into the
argument itself, where nothing reads that later. For an expanded tensor, such as the zeros that
`vmap` shares between samples, that is wrong: all samples would add into one. Checked on torch
2.13.0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..torch_private import OpOverload

__all__ = ["separate_overlaps", "writes"]

aten = torch.ops.aten

_WRITING = frozenset(
    (
        "index_put _unsafe_index_put index_add index_copy index_fill index_reduce scatter "
        "scatter_add scatter_reduce masked_scatter put slice_scatter select_scatter "
        "diagonal_scatter as_strided_scatter"
    ).split()
)


def writes(node: Any) -> bool:
    """Whether Inductor may let the operator write into its first argument."""
    target = getattr(node, "target", None)
    return (
        isinstance(target, OpOverload)
        and target.namespace == "aten"
        and (target._opname in _WRITING or target._opname.startswith("_foreach_"))
    )


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


def separate_overlaps(graph: Graph) -> int:
    """Copy what such operators would write into, where its elements overlap. Returns how many.

    Changes no value: the operators copy their argument anyway.
    """
    count = 0
    for node in list(graph.nodes):
        first = node.args[0] if node.args else None
        if not writes(node) or not isinstance(first, Node):
            continue
        if not _overlaps(first.meta.get("val")):
            continue
        with graph.inserting_before(node):
            copy = graph.call_function(
                aten.clone.default, (first,), {"memory_format": torch.contiguous_format}
            )
        copy.meta = dict(first.meta)
        copy.meta["val"] = first.meta["val"].contiguous()
        node.args = (copy, *node.args[1:])
        count += 1
    return count
