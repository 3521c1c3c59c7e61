"""A Dynamo backend that prices graphs and computes nothing: `estimate(mode="compile")`.

The graphs are those that backend `trn` would compile. Checked on torch 2.13.0.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch._functorch import config as functorch_config
from torch._inductor.compile_fx import compile_fx
from torch.fx import GraphModule

from ..lowering.call import Target
from .code import EagerCode
from .decompositions import decompositions
from .engine import GraphPrice, price_graph, work_of

__all__ = ["pricing_backend"]

# Inductor's folding of constants drops what makes a result on `meta`.
_PATCHES = {"joint_graph_constant_folding": False}

Launch = Callable[[GraphPrice, Callable[[], Any]], Any]


class _PricedCode(EagerCode):
    """A graph whose launches are told, with what makes its results' shapes."""

    def __init__(self, gm: GraphModule, priced: GraphPrice, launch: Launch) -> None:
        super().__init__(gm)
        self.priced, self.launch = priced, launch

    def __call__(self, inputs: Any) -> Any:
        return self.launch(self.priced, partial(super().__call__, inputs))


def pricing_backend(policy: str, target: Target, launch: Launch) -> Callable[..., Any]:
    """`launch(price, run)` is called for each launch of a graph; `run()` gives its results."""

    def inner(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        kind = "backward" if kwargs.get("is_backward") else "forward"
        name = f"graph {kwargs.get('graph_id', 0)} {kind}"
        return _PricedCode(gm, price_graph(name, work_of(gm, policy, target), target), launch)

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        with functorch_config.patch(enable_autograd_cache=False):
            return compile_fx(
                gm,
                example_inputs,
                inner_compile=inner,
                config_patches=_PATCHES,
                decompositions=decompositions(),
            )

    return backend
