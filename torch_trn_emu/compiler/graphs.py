"""Graphs and those of their control flow: walks over them, copies, and new nodes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

__all__ = ["added", "copied", "copy_of", "graphs_of"]


def graphs_of(gm: GraphModule) -> Iterator[GraphModule]:
    """The graph and the subgraphs of its control flow."""
    yield gm
    for child in gm.children():
        if isinstance(child, GraphModule):
            yield from graphs_of(child)


def copied(graph: Graph) -> Graph:
    copy = Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def copy_of(gm: GraphModule) -> GraphModule:
    """The graph as it is now and those of its control flow, over the same tensors."""
    made = GraphModule(gm, copied(gm.graph))
    for name, child in gm.named_children():
        if isinstance(child, GraphModule):
            setattr(made, name, copy_of(child))
    return made


def added(graph: Graph, target: Any, *args: Any, like: Node | None = None, **kwargs: Any) -> Node:
    """A new call where the graph inserts nodes, described by what it makes of its operands.

    like  what the call stands for: has the other metadata
    """
    given, named = torch.fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    value = target(*given, **named)  # first: it may raise
    node = graph.call_function(target, args, kwargs)
    node.meta = {**(like.meta if like else {}), "val": value}
    return node
