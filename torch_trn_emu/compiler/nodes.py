"""How nodes of a graph hang together: what they are views of, what they read, what reads them."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from ..calls import TensorArg
from ..torch_private import OpOverload
from .calls import STRIDED, arguments_of, tensor_of
from .control import FLAG

__all__ = [
    "base_of",
    "call_tensor",
    "is_in_order",
    "is_item",
    "is_pure",
    "maker_of",
    "operands_of",
    "sizes_of",
    "users_of",
    "written_by",
]

aten = torch.ops.aten

# Views whose elements keep their order: an elementwise step sees through them.
_IN_ORDER = frozenset(
    (
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.alias.default,
        aten.detach.default,
        aten.expand.default,  # more of a broadcast one
    )
)
# No views to torch, but their argument's values.
_SEEN_THROUGH = (aten._unsafe_view.default, FLAG)


def call_tensor(node: Node) -> TensorArg:
    """An operand as the call sees it."""
    found = tensor_of(node)
    assert found is not None
    return found


def sizes_of(node: Any) -> tuple[int, ...]:
    made = tensor_of(node)
    return made.shape if made is not None else ()


def is_item(node: Any) -> bool:
    """Whether it is one of several results of an operator."""
    return getattr(node, "target", None) is operator.getitem


def is_pure(node: Node) -> bool:
    """Whether it is an operator of torch that does no more than it returns."""
    target = node.target
    own = isinstance(target, OpOverload) and target.namespace in ("aten", "prims")
    return own and not target._schema.is_mutable  # type: ignore[union-attr]


# --- up -------------------------------------------------------------------------------------------


def is_in_order(node: Node) -> bool:
    """A view of the same elements in the same order, or more of a broadcast one."""
    return node.target in _IN_ORDER or _moves_ones(node)


def _moves_ones(node: Node) -> bool:
    """Whether it permutes dimensions of one element only, as `einsum` does."""
    source = node.args[0] if node.target is aten.permute.default else None
    if (t := tensor_of(source)) is None:
        return False
    order: Any = node.args[1]
    moved = [d % len(t.shape) for d in order if t.shape[d] != 1]
    return moved == sorted(moved)


def base_of(node: Node) -> tuple[Node, bool]:
    """What a node's memory belongs to, and whether it reads it in order."""
    in_order = True
    while (
        node.op == "call_function"
        and node.all_input_nodes
        and (
            getattr(node.target, "is_view", False)
            or node.target in _SEEN_THROUGH
            or node.meta.get(STRIDED)
        )
    ):
        in_order &= is_in_order(node)
        node = node.all_input_nodes[0]
    return node, in_order


def maker_of(node: Node) -> Node:
    """The operator that makes what a node is a view of, also as one of several results."""
    node, _ = base_of(node)
    return maker_of(node.args[0]) if is_item(node) else node  # type: ignore[arg-type]


def operands_of(node: Node) -> Iterator[Node]:
    """Tensor operands in the order of the call, repeated ones too."""

    def walk(value: Any) -> Iterator[Node]:
        if isinstance(value, Node):
            if hasattr(value.meta.get("val"), "dtype"):
                yield value
        elif isinstance(value, (list, tuple)):
            for element in value:
                yield from walk(element)

    yield from walk((*arguments_of(node), *node.kwargs.values()))


def written_by(node: Node) -> Iterator[Node]:
    """What a node writes in place."""
    schema = getattr(node.target, "_schema", None)
    for argument, value in zip(schema.arguments if schema else (), node.args, strict=False):
        if argument.is_write and isinstance(value, Node):
            yield value


# --- down -----------------------------------------------------------------------------------------


def users_of(node: Node) -> Iterator[Node]:
    """Nodes that read a value, views seen through; the graph's output too."""
    for user in node.users:
        if getattr(user.target, "is_view", False) or is_item(user):
            yield from users_of(user)
        else:
            yield user
