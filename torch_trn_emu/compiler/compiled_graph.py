"""The code of one compiled graph: host code behind aliases, and its row in the core's ledger.

It can be pickled, so that torch's AOTAutograd cache keeps it across processes. Checked on 2.13.0.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .. import _C
from ..pricing import NOT_MODELLED
from ..torch_private.inductor import BypassAOTAutogradCache, FxGraphCache, OutputCode
from .control import flags_read
from .dynamic_sizes import SizedPrice
from .graph_launches import launch_row
from .graphs import graphs_of
from .host_groups import groups_of, open_groups
from .move_to_host import is_trn
from .nodes import base_of, written_by
from .one_kernel_file import in_one_file
from .own_kernels import OwnKernel, define, kernels_of
from .records import GraphRecord, note, warn_unpriced
from .subgraphs import Launch

__all__ = ["EagerCode", "Placement", "TrnCode", "placement_of"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where inputs and results of a graph lie; the arguments of csrc/aten/bind.cpp's HostGraph."""

    device: int
    written: tuple[bool, ...]
    result_devices: tuple[int, ...]
    returned_inputs: tuple[int, ...]
    draws: bool
    groups: tuple[str, ...] = ()  # of its collectives
    kernels: tuple[OwnKernel, ...] = ()  # what it calls of other libraries

    def host_graph(self) -> Any:
        return _C.HostGraph(
            self.device,
            list(self.written),
            list(self.result_devices),
            list(self.returned_inputs),
            self.draws,
        )


def placement_of(gm: GraphModule, device: int) -> Placement:
    """Read it from a graph that has not been moved to the host yet."""
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    number = {node: k for k, node in enumerate(inputs)}
    results: Any = gm.graph.output_node().args[0]
    drawn = torch.Tag.nondeterministic_seeded
    written = {base_of(n)[0] for node in gm.graph.nodes for n in written_by(node)}
    return Placement(
        device=device,
        written=tuple(node in written for node in inputs),
        result_devices=tuple(_core_of(r) for r in results),
        returned_inputs=tuple(number.get(r, -1) if isinstance(r, Node) else -1 for r in results),
        draws=any(drawn in getattr(node.target, "tags", ()) for node in gm.graph.nodes),
        groups=tuple(dict.fromkeys(name for part in graphs_of(gm) for name in groups_of(part))),
        kernels=tuple(kernel for part in graphs_of(gm) for kernel in kernels_of(part, device)),
    )


def _core_of(result: Any) -> int:
    value = result.meta.get("val") if isinstance(result, Node) else None
    return (value.device.index or 0) if isinstance(value, torch.Tensor) and is_trn(value) else -1


@dataclass
class EagerCode(OutputCode):
    """A graph that runs operator by operator on trn."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__()
        self._boxed_call = True
        self.gm = gm

    def __call__(self, inputs: Any) -> Any:
        given = list(inputs)
        inputs.clear()
        return self.gm.forward(*given)  # the graph is no module of the user's

    def prepare_for_serialization(self) -> None:
        raise BypassAOTAutogradCache("a graph of trn that is not compiled")

    def post_compile(self, example_inputs: Any, constants: Any, graph_kwargs: Any) -> None:
        pass

    def set_triton_bundle(self, triton_bundle: Any) -> None:
        pass


@dataclass
class TrnCode(OutputCode):
    """Callable with a list of trn tensors, which it empties, as torch's compiled graphs do."""

    def __init__(
        self,
        code: Any,  # a CompiledFxGraph
        placement: Placement,
        priced: tuple[Launch, ...] | SizedPrice,
        record: GraphRecord,
    ) -> None:
        super().__init__()
        self._boxed_call = True  # torch looks for it in the instance
        self.code, self.placement, self.priced, self.record = code, placement, priced, record
        self._time_taken_ns = code._time_taken_ns
        self._graph: Any = None
        self._row: Any = None  # of a graph that is one launch, whatever its arguments
        self._rows: dict[tuple[int, ...], list[Any]] = {}  # of the ledger, which keeps them

    def __call__(self, inputs: Sequence[Any]) -> Any:
        if self._graph is None:
            self._graph = self.placement.host_graph()
            launches = self.priced if isinstance(self.priced, tuple) else ()
            if len(launches) == 1 and launches[0].once:
                ((_, self._row),) = self._rows_at(())
        if self.placement.groups:
            open_groups(self.placement.groups)
            return self._run_with_collectives(inputs)
        if self._row is not None or not self.priced:
            return self._graph.run(self.code, inputs, self._row)
        return self._run_and_see(inputs)

    def _run_and_see(self, inputs: Sequence[Any], scheduled: bool = False) -> Any:
        """Launch what has run: the flags that it read and the sizes of its results tell."""
        sized = self.priced if isinstance(self.priced, SizedPrice) else None
        given = sized.given(inputs) if sized else ()
        with flags_read() as flags:
            if scheduled:
                results = self._graph.run_scheduled(self.code, inputs, [])
            else:
                results = self._graph.run(self.code, inputs)
        if not self.priced:
            return results
        for launch, row in self._rows_at((*given, *sized.made(results)) if sized else ()):
            _C.launch_graph(self.placement.device, row, launch.count(flags))
        return results

    def _run_with_collectives(self, inputs: Sequence[Any]) -> Any:
        """Launch beside the collectives; after them, where only what has run tells the launches."""
        sized = self.priced if isinstance(self.priced, SizedPrice) else None
        given = sized.given(inputs) if sized else ()
        known = self.priced and not (sized and sized.is_made)
        rows = self._rows_at(given) if known else []
        if not known or not all(launch.once for launch, _ in rows):
            return self._run_and_see(inputs, scheduled=True)
        steps = [step for launch, row in rows for step in (row, *launch.then)]
        return self._graph.run_scheduled(self.code, inputs, steps)

    def _rows_at(self, sizes: tuple[int, ...]) -> list[tuple[Launch, Any]]:
        """The launches of a call with these sizes, each with its row."""
        launches = self.priced.at(sizes) if isinstance(self.priced, SizedPrice) else self.priced
        if sizes not in self._rows:
            device = self.placement.device
            self._rows[sizes] = [launch_row(one.priced, device) for one in launches]
        return list(zip(launches, self._rows[sizes], strict=True))

    def prepare_for_serialization(self) -> None:
        self.code = copy.copy(self.code)
        self.code.prepare_for_serialization()
        self._graph = self._row = None

    def post_compile(self, example_inputs: Any, constants: Any, graph_kwargs: Any) -> None:
        """After loading: find the host code on disk again, and what it calls."""
        for kernel in self.placement.kernels:
            define(kernel)
        with in_one_file():
            code, _ = FxGraphCache.cache_hit_post_compile(self.code, {}, constants)
        if code is None:
            raise RuntimeError("the host code of a cached graph is gone from Inductor's cache")
        self.code = code
        for launch in self.priced if isinstance(self.priced, tuple) else ():
            if launch.priced.price.status == NOT_MODELLED:
                warn_unpriced(launch.priced.name, launch.priced.price.note)
        note(self.record)
        code.post_compile(example_inputs, constants, graph_kwargs)

    def set_triton_bundle(self, triton_bundle: Any) -> None:
        self.code.set_triton_bundle(triton_bundle)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_graph": None, "_row": None, "_rows": {}}
