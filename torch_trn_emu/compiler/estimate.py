"""A Dynamo backend that prices graphs and computes nothing: `estimate(mode="compile")`.

The graphs are those that backend `trn` would compile. Checked on torch 2.13.0.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch._C import DispatchKey
from torch._decomp import global_decomposition_table
from torch._functorch import config as functorch_config
from torch._inductor.compile_fx import compile_fx
from torch.fx import GraphModule

from ..lowering.call import Target
from .code import EagerCode
from .decompositions import decompositions
from .engine import GraphPrice, price_graph, work_of

__all__ = ["composites_apart", "pricing_backend"]

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


@contextmanager
def composites_apart() -> Iterator[None]:
    """Traces composite operators on `meta` as on devices: as what they call.

    torch has references for a hundred of them, cross entropy among them, as kernels of `meta`; one
    that has a kernel is taken as a whole, and without a formula for its gradient it has none.
    """
    kernels = [(op, op.py_kernels.pop(DispatchKey.Meta)) for op in _referenced_composites()]
    for op, _ in kernels:
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, kernel in kernels:
            op.py_kernels[DispatchKey.Meta] = kernel
            op._dispatch_cache.clear()


@lru_cache
def _referenced_composites() -> tuple[torch._ops.OpOverload, ...]:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    known = {op: None for table in global_decomposition_table.values() for op in table}
    return tuple(
        op
        for op in known
        if isinstance(op, torch._ops.OpOverload)
        and DispatchKey.Meta in op.py_kernels
        and has_kernel(op.name(), "CompositeImplicitAutograd")
    )
