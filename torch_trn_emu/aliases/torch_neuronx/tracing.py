"""The inference functions of `torch_neuronx` under --as-neuron.

Of [api] Neuron SDK, torch-neuronx API reference. A traced module takes and returns host tensors, as
the vendor's does.
"""

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ... import trn
from ...errors import Unsupported
from ...settings import DEVICE_TYPE
from ...torch_private import tree_map

__all__ = ["DataParallel", "async_load", "dynamic_batch", "lazy_load", "replace_weights", "trace"]


class _OnDevice(torch.nn.Module):
    """Host tensors in, host tensors out, the module on a device between."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        outputs = self.module(*(x.to(DEVICE_TYPE) for x in inputs))
        return tree_map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, outputs)


class _Function(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def trace(
    func: Callable[..., Any],
    example_inputs: Any,
    *_: Any,
    input_output_aliases: Mapping[torch.Tensor, int] | None = None,
    compiler_workdir: str | None = None,
    compiler_args: Any = None,
    partitioner_config: Any = None,
    inline_weights_to_neff: bool = True,
    cpu_backend: bool = False,
) -> torch.jit.ScriptModule:
    """Trace `func` with a tensor or a tuple of them; the result runs on the emulated core.

    Can be saved with torch.jit.save and loaded where the device has this name. The compiler's
    arguments have no effect: there is no compiler. Raises Unsupported for aliased inputs and
    outputs and for a partitioner, which change what the module does.
    """
    if input_output_aliases or partitioner_config is not None:
        raise Unsupported(
            "torch_neuronx.trace: input_output_aliases and partitioner_config are not served by "
            "the emulator. Keep state in the module's buffers and trace the whole function."
        )
    module = copy.deepcopy(func) if isinstance(func, torch.nn.Module) else _Function(func)
    device = "cpu" if cpu_backend else DEVICE_TYPE
    inputs = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    with torch.no_grad():
        traced: torch.jit.ScriptModule = torch.jit.trace(
            _OnDevice(module.eval().to(device)), tuple(inputs), check_trace=False
        )
    return traced


def dynamic_batch(neuron_script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The module as it is: a traced module takes any batch size here."""
    return neuron_script


def async_load(trace: torch.jit.ScriptModule, enable_async_load: bool = True) -> None:
    """Nothing to do: loading takes no simulated time (not modelled)."""


def lazy_load(trace: torch.jit.ScriptModule, enable_lazy_load: bool = True) -> None:
    """Nothing to do: loading takes no simulated time (not modelled)."""


def replace_weights(
    neuron_script: torch.jit.ScriptModule, weights: torch.nn.Module | Mapping[str, torch.Tensor]
) -> None:
    """Copy the weights into a traced module, by name. Raises KeyError for an unknown name."""
    given = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    own = {name.removeprefix("module."): p for name, p in neuron_script.state_dict().items()}
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)


class DataParallel(torch.nn.Module):
    """Splits the batch among logical cores, one after the other, and joins the results.

    device_ids  of the cores; None: all that are visible. dim  the axis of the batch
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device_ids: list[int] | None = None,
        dim: int = 0,
        set_dynamic_batching: bool = True,
    ) -> None:
        super().__init__()
        cores = range(trn.device_count()) if device_ids is None else device_ids
        self.dim, self.device_ids = dim, list(cores)
        self.replicas = [_on_core(model, core) for core in self.device_ids]

    def forward(self, *inputs: torch.Tensor) -> Any:
        chunks = zip(*(x.chunk(len(self.device_ids), self.dim) for x in inputs), strict=True)
        results = []
        for core, replica, chunk in zip(self.device_ids, self.replicas, chunks, strict=False):
            with trn.device(core):
                results.append(replica(*chunk))
        return tree_map(lambda *parts: torch.cat(parts, self.dim), *results)


def _on_core(model: torch.nn.Module, core: int) -> torch.nn.Module:
    if not isinstance(model, torch.jit.ScriptModule):
        return _OnDevice(copy.deepcopy(model).to(f"{DEVICE_TYPE}:{core}"))
    stored = io.BytesIO()
    torch.jit.save(model, stored)
    stored.seek(0)
    loaded: torch.nn.Module = torch.jit.load(stored, map_location=f"{DEVICE_TYPE}:{core}")
    return loaded
