"""What `import torch_neuronx` gives under --as-neuron: TorchNeuron's names and inference.

aliases/neuron_names.py lists them all with their sources. What is refused raises on access.
"""

from typing import Any

from ... import trn
from ...errors import Unimplemented, Unsupported
from ...trn.device import (
    current_device,
    device,
    device_count,
    get_device_properties,
    is_initialized,
    set_device,
    synchronize,
)
from ...trn.memory import (
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_snapshot,
    memory_stats,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
)
from ..neuron_names import reason
from . import memory, neuron_dynamo_backend, profiling, streams
from .neuron_dynamo_backend import get_dynamo_metrics, reset_dynamo_metrics
from .profiling import NeuronProfiler
from .streams import (
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    set_stream,
    stream,
)
from .tracing import (
    DataParallel,
    async_load,
    dynamic_batch,
    lazy_load,
    replace_weights,
    trace,
)
from .tracking import clear_op_tracking, get_executed_ops, get_fallback_ops

neuron = trn
is_neuron_runtime_initialized = is_initialized

__all__ = [
    "DataParallel",
    "Event",
    "NeuronProfiler",
    "Stream",
    "StreamContext",
    "async_load",
    "clear_op_tracking",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "dynamic_batch",
    "empty_cache",
    "get_device_properties",
    "get_dynamo_metrics",
    "get_executed_ops",
    "get_fallback_ops",
    "is_neuron_runtime_initialized",
    "lazy_load",
    "max_memory_allocated",
    "max_memory_reserved",
    "memory",
    "memory_allocated",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "memory_summary",
    "neuron",
    "neuron_dynamo_backend",
    "profiling",
    "replace_weights",
    "reset_accumulated_memory_stats",
    "reset_dynamo_metrics",
    "reset_peak_memory_stats",
    "set_device",
    "set_stream",
    "stream",
    "streams",
    "synchronize",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if (why := reason(f"torch_neuronx.{name}")) is not None:
        raise Unsupported(f"torch_neuronx.{name} is not provided by the emulator: {why}.")
    raise Unimplemented(
        f"torch_neuronx.{name} is not provided by the emulator: "
        f"torch_trn_emu/aliases/torch_neuronx has {', '.join(__all__)}."
    )
