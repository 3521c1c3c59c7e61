"""How gradients of a graph's results are expected to lie: as autograd lays them out.

AOTAutograd copies a gradient whose strides are other than it guessed. It guesses those of the
result, which no gradient has of a view with gaps, a part of `chunk` say: that one is contiguous.
Checked on torch 2.13.0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..torch_private import tree_leaves

__all__ = ["layout_of_tangents"]

_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def layout_of_tangents(gm: GraphModule) -> dict[str, bool]:
    """What to patch AOTAutograd's configuration with: guess by memory format, not by strides."""
    nodes = tree_leaves(gm.graph.output_node().args)
    values = [n.meta.get("example_value") for n in nodes if isinstance(n, Node)]
    results = [v for v in values if isinstance(v, Tensor) and v.layout is torch.strided]
    tracked = [v for v in results if v.requires_grad and v.numel()]
    dense = [v for v in tracked if _is_dense(v)]
    by_format = len(dense) < len(tracked) and all(map(_has_a_format, dense))
    return {"guess_tangent_strides_as_outputs": False} if by_format else {}


def _is_dense(value: Any) -> bool:
    """Whether its elements fill its memory, each once."""
    held = sorted((s, n) for n, s in zip(value.shape, value.stride(), strict=True) if n != 1)
    expected = 1
    for stride, size in held:
        if stride != expected:
            return False
        expected *= size
    return True


def _has_a_format(value: Tensor) -> bool:
    ranks = {torch.channels_last: 4, torch.channels_last_3d: 5}
    return any(
        value.is_contiguous(memory_format=f)
        for f in _FORMATS
        if ranks.get(f, value.dim()) == value.dim()
    )
