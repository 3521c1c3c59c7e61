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
from .control import Flags, flags_read, put_flags
from .decompositions import decompositions
from .pieces import Launch, launches_of

__all__ = ["pricing_backend"]

# Inductor's folding of constants drops what makes a result on `meta`.
_PATCHES = {"joint_graph_constant_folding": False}

Told = Callable[[Sequence[Launch], Callable[[], tuple[Any, Flags]]], Any]


class _PricedCode(EagerCode):
    """A graph whose launches are told, with what makes its results' shapes."""

    def __init__(self, gm: GraphModule, launches: Sequence[Launch], told: Told) -> None:
        super().__init__(gm)
        self.launches, self.told = launches, told

    def __call__(self, inputs: Any) -> Any:
        return self.told(self.launches, partial(self._run, inputs))

    def _run(self, inputs: Any) -> tuple[Any, Flags]:
        with flags_read() as flags:
            return super().__call__(inputs), flags


def pricing_backend(policy: str, target: Target, told: Told) -> Callable[..., Any]:
    """`told(launches, run)` is called for each call of a graph.

    `run()` gives the graph's results, and the flags that say how often each launch happens.
    """

    def inner(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        kind = "backward" if kwargs.get("is_backward") else "forward"
        put_flags(gm)
        name = f"graph {kwargs.get('graph_id', 0)} {kind}"
        return _PricedCode(gm, launches_of(name, gm, policy, target), told)

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
