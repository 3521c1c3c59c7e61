"""Graphs whose sizes change from call to call: a price for each tuple of sizes.

A symbol of a graph stands for a size that is an argument, or one of a tensor argument. Checked on
torch 2.13.0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .calls import with_sizes
from .engine import GraphPrice

__all__ = ["SizedPrice", "places_of"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a call shows the value of a symbol: an argument, or a dimension of one."""

    symbol: Any  # of sympy
    argument: int
    dimension: int | None

    def read(self, arguments: Sequence[Any]) -> int:
        value = arguments[self.argument]
        return int(value if self.dimension is None else value.shape[self.dimension])


def places_of(gm: GraphModule) -> tuple[_Place, ...]:
    """The symbols of a graph; none where all sizes are fixed."""
    found: dict[Any, _Place] = {}
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for k, node in enumerate(inputs):
        value = node.meta.get("val")
        shown = enumerate(value.shape) if isinstance(value, Tensor) else ((None, value),)
        for dimension, size in shown:
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                found.setdefault(size.node.expr, _Place(size.node.expr, k, dimension))
    return tuple(found.values())


class SizedPrice:
    """Prices of one graph by its sizes, each made at the first call that has them."""

    def __init__(self, places: tuple[_Place, ...], price: Callable[[str], GraphPrice | None]):
        self.places, self._price = places, price
        self._known: dict[tuple[int, ...], GraphPrice | None] = {}

    def sizes(self, arguments: Sequence[Any]) -> tuple[int, ...]:
        return tuple(place.read(arguments) for place in self.places)

    def at(self, sizes: tuple[int, ...]) -> GraphPrice | None:
        if sizes not in self._known:
            values = {p.symbol: size for p, size in zip(self.places, sizes, strict=True)}
            text = " ".join(f"{symbol}={size}" for symbol, size in values.items())
            with with_sizes(values):
                self._known[sizes] = self._price(text)
        return self._known[sizes]
