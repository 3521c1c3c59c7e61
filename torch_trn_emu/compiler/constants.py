"""Numbers that a graph has in tensors: made of no argument, in one step or in several."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import Module

from ..torch_private import disable_modes, tree_leaves, tree_map
from .calls import plain, tensor_of
from .nodes import is_pure

__all__ = ["Constants"]

aten, prims = torch.ops.aten, torch.ops.prims

MOST = 1 << 10  # elements of what such a number may be made of (chosen)
_HOST = torch.device("cpu")


class Constants:
    """Values of nodes on the host, computed when they are asked for."""

    def __init__(self, module: Module) -> None:
        self.module = module  # that holds the graph's attributes
        self.found: dict[Node, Any] = {}

    def number(self, value: Any) -> float | None:
        """A number, or what a tensor of one element holds in any run."""
        if isinstance(value, (int, float)):
            return float(value)
        made = tensor_of(value) if isinstance(value, Node) else None
        if made is None or made.numel != 1:
            return None
        with disable_modes(), torch.no_grad():
            known = self._of(value)
            is_number = isinstance(known, Tensor) and not known.is_complex()
            return float(known) if is_number else None

    def multiplied(self, node: Node) -> tuple[Any, float | None]:
        """What a node multiplies by a number, and that number; None for other nodes."""
        if node.target in (aten.mul.Tensor, aten.div.Tensor):
            x, by = node.args[:2]
            if (number := self.number(by)) is not None and (
                number or node.target is aten.mul.Tensor
            ):
                return x, number if node.target is aten.mul.Tensor else 1 / number
            if node.target is aten.mul.Tensor and (number := self.number(x)) is not None:
                return by, number
        return None, None

    def _of(self, node: Node) -> Any:
        if node not in self.found:
            self.found[node] = self._made(node) if _is_fixed(node) else self._attribute(node)
        return self.found[node]

    def _attribute(self, node: Node) -> Any:
        held = getattr(self.module, str(node.target), None) if node.op == "get_attr" else None
        return held.to(_HOST) if isinstance(held, Tensor) and held.numel() <= MOST else None

    def _made(self, node: Node) -> Any:
        made = [tensor_of(v) for v in tree_leaves(node.meta.get("val"))]
        if any(t is None or t.numel > MOST for t in made):
            return None
        if any(self._of(n) is None for n in node.all_input_nodes):
            return None
        if node.target is prims.device_put.default:
            return self._of(node.args[0])  # type: ignore[arg-type]
        try:
            return node.target(*self._given(node.args), **self._given(node.kwargs))  # type: ignore[operator]
        except Exception:  # a kernel that the host does not have
            return None

    def _given(self, values: Any) -> Any:
        def given(value: Any) -> Any:
            if isinstance(value, Node):
                return self._of(value)
            if isinstance(value, torch.SymInt):
                return plain(value)
            return _HOST if isinstance(value, torch.device) else value

        if isinstance(values, Mapping):
            return {name: tree_map(given, value) for name, value in values.items()}
        return tree_map(given, tuple(values))


def _is_fixed(node: Node) -> bool:
    """An operator that gives the same whenever it is called."""
    target: Any = node.target
    fixed = is_pure(node) and torch.Tag.nondeterministic_seeded not in target.tags
    return fixed and not target._schema.name.startswith("aten::empty")
