"""Moves a graph from trn to the host: device arguments, constants, example inputs, metadata.

The host's code generator then sees a host graph. Copies between devices stay copies. Checked on
torch 2.13.0.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .. import _C
from ..host import host_device
from ..settings import DEVICE_TYPE
from ..torch_private import FakeTensor, tree_any, tree_map, unset_fake_temporarily
from .graphs import graphs_of
from .host_groups import to_host_groups

__all__ = ["device_of_graph", "host_inputs", "is_of_device", "move_to_host"]

aten = torch.ops.aten
_SHAPES = frozenset(("val", "eager_input_vals"))  # what a node's metadata has of fake tensors


def is_trn(value: Any) -> bool:
    return _is_of(DEVICE_TYPE, value)


def _is_of(kind: str, value: Any) -> bool:
    device = value.device if isinstance(value, Tensor) else value
    return isinstance(device, torch.device) and device.type == kind


def device_of_graph(gm: GraphModule, inputs: Sequence[Any]) -> int | None:
    """The core that the graph's first trn tensor lies on; None for a graph without one."""
    values = [*inputs, *(n.meta.get("val") for n in gm.graph.nodes)]
    for value in values:
        if is_trn(value):
            return value.device.index or 0
    return 0 if _names(DEVICE_TYPE, gm) else None


def _names(kind: str, gm: GraphModule) -> bool:
    """Whether an argument of a node is a device of this kind."""
    of_kind = partial(_is_of, kind)
    nodes = (node for part in graphs_of(gm) for node in part.graph.nodes)
    return any(tree_any(of_kind, (node.args, node.kwargs)) for node in nodes)


def is_of_device(kind: str, gm: GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether a graph of Dynamo has tensors on devices of this kind."""
    made = (node.meta.get("example_value") for node in gm.graph.nodes)
    return any(_is_of(kind, value) for value in (*inputs, *made)) or _names(kind, gm)


def host_inputs(inputs: Sequence[Any]) -> list[Any]:
    """The example inputs on the host, with the sizes, strides and offsets of the originals."""
    return [_on_host(value) for value in inputs]


def _on_host(value: Any) -> Any:
    if not is_trn(value):
        return value
    if not isinstance(value, FakeTensor):
        return _C.host_alias(value)
    offset = value.storage_offset()
    with value.fake_mode:
        if isinstance(offset, int) and offset == 0:
            return torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=host_device()
            )
        elements = offset + 1
        for size, stride in zip(value.shape, value.stride(), strict=True):
            elements = elements + (size - 1) * stride
        base = torch.empty(elements, dtype=value.dtype, device=host_device())
        return base.as_strided(value.shape, value.stride(), offset)


def move_to_host(gm: GraphModule) -> None:
    """Rewrite the graph in place."""
    parts = list(graphs_of(gm))
    for part in parts:
        to_host_groups(part)
        for node in list(part.graph.nodes):
            _keep_copies(part, node)
            node.args, node.kwargs = tree_map(_host_device, (node.args, node.kwargs))
        for node in part.graph.nodes:
            if node.op == "get_attr":
                _constant_to_host(part, node)
            if len(parts) > 1:  # Inductor does it for a graph without bodies
                for key in _SHAPES & node.meta.keys():
                    node.meta[key] = tree_map(_on_host, node.meta[key])
        part.recompile()


def _host_device(value: Any) -> Any:
    return host_device() if isinstance(value, torch.device) and value.type == DEVICE_TYPE else value


def _keep_copies(gm: GraphModule, node: Node) -> None:
    """A copy between devices is a copy on the host too, where it would else be its argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return
    source, result = node.args[0].meta.get("val"), node.meta.get("val")
    if not (isinstance(source, Tensor) and isinstance(result, Tensor)):
        return
    if source.device == result.device or not (is_trn(source) or is_trn(result)):
        return
    same = node.target is aten._to_copy.default and source.dtype == result.dtype
    if same or node.target is torch.ops.prims.device_put.default:
        node.target, node.args, node.kwargs = aten.clone.default, (node.args[0],), {}


def _constant_to_host(gm: GraphModule, node: Node) -> None:
    *path, name = node.target.split(".")  # type: ignore[union-attr]
    owner = gm.get_submodule(".".join(path))
    value = getattr(owner, name)
    if isinstance(value, Tensor) and is_trn(value):
        with unset_fake_temporarily():  # the constant is a real tensor
            lent = _on_host(value.detach())
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
        setattr(owner, name, lent)
