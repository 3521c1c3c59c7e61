"""Graphs whose sizes change from call to call: a price for each tuple of sizes.

A symbol of a graph stands for a size that is an argument, or one of a tensor argument; one that
depends on data is a size of a result. Checked on torch 2.13.0.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ..torch_private import FakeTensorMode
from ..torch_private.inductor import GraphPickler, PicklerOptions
from .calls import with_sizes
from .subgraphs import Launch

__all__ = ["SizedPrice", "places_of"]

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a call shows the value of a symbol: an argument or result, or a dimension of one."""

    symbol: Any  # of sympy
    made: bool  # a result
    index: int
    dimension: int | None

    def read(self, values: Sequence[Any]) -> int:
        value = values[self.index]
        return int(value if self.dimension is None else value.shape[self.dimension])


def places_of(gm: GraphModule) -> tuple[_Place, ...]:
    """The symbols of a graph; none where all sizes are fixed."""
    found: dict[Any, _Place] = {}
    results: Any = gm.graph.output_node().args[0]
    for made, nodes in ((False, gm.graph.find_nodes(op="placeholder")), (True, results)):
        for k, node in enumerate(nodes):
            for dimension, size in _sizes_of(node):
                if isinstance(size, torch.SymInt) and _is_a_number(size):
                    found.setdefault(size.node.expr, _Place(size.node.expr, made, k, dimension))
    return tuple(found.values())


def _is_a_number(size: torch.SymInt) -> bool:
    """Whether it stands for a size, not for the ragged dimension of a jagged tensor.

    That one is an argument that no tensor of the graph has: `values` and `offsets` have their own.
    """
    return bool(size.node.expr.is_Symbol) and not size.node.is_nested_int()


def _sizes_of(node: Any) -> Iterator[tuple[int | None, Any]]:
    value = node.meta.get("val") if isinstance(node, Node) else None
    if isinstance(value, Tensor):
        yield from enumerate(value.shape)
    else:
        yield None, value


MOST_SIZES = 64  # of a graph whose launches are kept; others are priced again, equal (chosen)


class SizedPrice:
    """The launches of one graph by its sizes, each priced at the first call that has them."""

    def __init__(
        self,
        places: tuple[_Place, ...],
        gm: GraphModule,
        price: Callable[[GraphModule, str], tuple[Launch, ...]],
    ) -> None:
        self.places, self._price = places, price
        self._known: dict[Sizes, tuple[Launch, ...]] = {}
        self._gm: GraphModule | bytes = gm

    @property
    def is_made(self) -> bool:
        """Whether only the results of a call show all sizes."""
        return any(place.made for place in self.places)

    def given(self, arguments: Sequence[Any]) -> Sizes:
        """The sizes that the arguments of a call show."""
        return tuple(place.read(arguments) for place in self.places if not place.made)

    def made(self, results: Sequence[Any]) -> Sizes:
        """The others, which its results show."""
        return tuple(place.read(results) for place in self.places if place.made)

    def at(self, sizes: Sizes) -> tuple[Launch, ...]:
        if (found := self._known.pop(sizes, None)) is None:
            values = {p.symbol: size for p, size in zip(self.places, sizes, strict=True)}
            text = " ".join(f"{symbol}={size}" for symbol, size in values.items())
            with with_sizes(values):
                found = self._price(self._graph(), text)
        while len(self._known) >= MOST_SIZES:
            del self._known[next(iter(self._known))]  # the one that was not used for longest
        self._known[sizes] = found
        return found

    def _graph(self) -> GraphModule:
        if isinstance(self._gm, bytes):
            mode = FakeTensorMode(shape_env=ShapeEnv())
            self._gm = GraphPickler.loads(self._gm, mode)  # type: ignore[assignment]
        return self._gm  # type: ignore[return-value]

    def __getstate__(self) -> dict[str, Any]:
        """A graph with symbolic sizes takes torch's own way to be pickled."""
        if isinstance(gm := self._gm, GraphModule):
            gm = GraphPickler.dumps(gm, _PICKLED)
        return self.__dict__ | {"_gm": gm}


# Of a node's metadata what prices and reports read.
_KEPT = frozenset(("val", "custom", "stack_trace", "original_aten", "seq_nr", "from_node"))
_PICKLED = PicklerOptions(ops_filter=None, node_metadata_key_filter=_KEPT.__contains__)
