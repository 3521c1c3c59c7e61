"""A Dynamo backend that prices graphs and computes nothing: `estimate(mode="compile")`.

The graphs are those that backend `trn` would compile. Checked on torch 2.13.0.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any

from torch.fx import GraphModule

from ..calls import Target
from ..torch_private import DispatchKey, OpOverload, global_decomposition_table, has_kernel
from ..torch_private.inductor import compile_fx, functorch_config
from .apply_precision import SDPA, attention_calls, policy_of
from .compiled_graph import EagerCode
from .control import Flags, flags_read
from .decompositions import decompositions, kernels_put_away, traced_whole
from .dynamic_sizes import SizedPrice, places_of
from .flex import open_flex_attention
from .graphs import copy_of, graphs_of
from .operand_roles import find_weights
from .own_passes import sums_kept
from .subgraphs import Launch, launches_of, prepare, unpriced
from .tangent_layouts import layout_of_tangents

__all__ = ["composites_apart", "pricing_backend"]

# Inductor's folding of constants drops what makes a result on `meta`.
_PATCHES = {"joint_graph_constant_folding": False}

Ran = tuple[Sequence[Launch], Any, Flags]
Told = Callable[[Callable[[], Ran]], Any]


class _PricedCode(EagerCode):
    """A graph that tells what makes its results' shapes, and its launches."""

    def __init__(self, gm: GraphModule, priced: Sequence[Launch] | SizedPrice, told: Told) -> None:
        super().__init__(gm)
        self.priced, self.told = priced, told

    def __call__(self, inputs: Any) -> Any:
        return self.told(partial(self._run, inputs))

    def _run(self, inputs: Any) -> Ran:
        sized = self.priced if isinstance(self.priced, SizedPrice) else None
        given = sized.given(inputs) if sized else ()
        with flags_read() as flags:
            results = super().__call__(inputs)
        if isinstance(self.priced, SizedPrice):
            return self.priced.at((*given, *self.priced.made(results))), results, flags
        return self.priced, results, flags


def pricing_backend(
    policy: str, target: Target, told: Told, attention: Callable[..., Any] = SDPA
) -> Callable[..., Any]:
    """`told(run)` is called for each call of a graph.

    `run()` gives its launches, its results, and the flags that say how often each launch happens.
    `attention` is what scaled_dot_product_attention is on the device, by whatever name the function
    was called: Dynamo gives its node, the mode that replaces names sees some of them only.
    """

    def inner(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        kind = "backward" if kwargs.get("is_backward") else "forward"
        prepare(gm, **kwargs)
        name = f"graph {kwargs.get('graph_id', 0)} {kind}"

        def price(graph: GraphModule, sizes: str = "") -> tuple[Launch, ...]:
            title = f"{name} {sizes}".rstrip()
            try:
                return launches_of(title, graph, policy, target)
            except Exception as error:  # as the device: the graph runs, its time is not modelled
                return (unpriced(title, graph, target, f"{type(error).__name__}: {error}"),)

        places = places_of(gm)
        priced = SizedPrice(places, copy_of(gm), price) if places else price(gm)
        return _PricedCode(gm, priced, told)

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        for part in graphs_of(gm):
            for node in attention_calls(part.graph):
                if policy_of(node, policy) != "mxfp8_all":
                    node.target = attention
            open_flex_attention(part.graph)
            find_weights(part.graph)
        patches = {"enable_autograd_cache": False, **layout_of_tangents(gm)}
        with functorch_config.patch(patches), sums_kept(), traced_whole(), composites_apart():
            return compile_fx(
                gm,
                example_inputs,
                inner_compile=inner,
                config_patches=_PATCHES,
                decompositions=decompositions(),
            )

    return backend


def composites_apart() -> AbstractContextManager[None]:
    """Traces composite operators on `meta` as on devices: as what they call.

    torch has references for a hundred of them, cross entropy among them, as kernels of `meta`; one
    that has a kernel is taken as a whole, and without a formula for its gradient it has none.
    """
    return kernels_put_away(_referenced_composites(), (DispatchKey.Meta,))


@lru_cache
def _referenced_composites() -> tuple[OpOverload, ...]:
    known = {op: None for table in global_decomposition_table.values() for op in table}
    return tuple(
        op
        for op in known
        if isinstance(op, OpOverload)
        and DispatchKey.Meta in op.py_kernels
        and has_kernel(op.name(), "CompositeImplicitAutograd")
    )
