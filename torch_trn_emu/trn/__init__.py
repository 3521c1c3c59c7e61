"""`torch.trn`: the device module, with the names of `torch.cuda` and the vendor's `torch.neuron`.

Importing it registers the device with torch.
"""

from typing import Any

from . import amp, legacy, memory, nvtx, profiler, random, streams
from .amp import get_amp_supported_dtype, is_bf16_supported
from .device import (
    DeviceProperties,
    _is_in_bad_fork,  # noqa: F401  torch asks the device module for it
    _lazy_init,  # noqa: F401  likewise
    can_device_access_peer,
    current_device,
    device,
    device_count,
    device_of,
    get_arch_list,
    get_device_capability,
    get_device_name,
    get_device_properties,
    get_gencode_flags,
    get_sync_debug_mode,
    init,
    ipc_collect,
    is_available,
    is_initialized,
    is_tf32_supported,
    set_device,
    set_sync_debug_mode,
    synchronize,
)
from .distributed import collectives
from .graphs import CUDAGraph, Graph, graph, graph_pool_handle, is_current_stream_capturing
from .graphs import install as _install_graphs
from .launches import counters, reset_counters
from .memory import (
    device_memory_used,
    empty_cache,
    get_allocator_backend,
    get_per_process_memory_fraction,
    list_gpu_processes,
    max_memory_allocated,
    max_memory_cached,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_cached,
    memory_reserved,
    memory_snapshot,
    memory_stats,
    memory_stats_as_nested_dict,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_max_memory_allocated,
    reset_max_memory_cached,
    reset_peak_memory_stats,
    set_per_process_memory_fraction,
)
from .random import (
    _get_generator,  # noqa: F401  likewise
    default_generators,
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from .registration import register
from .streams import (
    Event,
    Stream,
    StreamContext,
    _sleep,  # noqa: F401  torch's tests ask every device module for it
    current_stream,
    default_stream,
    set_stream,
    stream,
)

__all__ = [
    "CUDAGraph",
    "DeviceProperties",
    "Event",
    "Graph",
    "Stream",
    "StreamContext",
    "amp",
    "can_device_access_peer",
    "collectives",
    "counters",
    "current_device",
    "current_stream",
    "default_generators",
    "default_stream",
    "device",
    "device_count",
    "device_memory_used",
    "device_of",
    "empty_cache",
    "get_allocator_backend",
    "get_amp_supported_dtype",
    "get_arch_list",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_gencode_flags",
    "get_per_process_memory_fraction",
    "get_rng_state",
    "get_rng_state_all",
    "get_sync_debug_mode",
    "graph",
    "graph_pool_handle",
    "has_half",
    "has_magma",
    "init",
    "initial_seed",
    "ipc_collect",
    "is_available",
    "is_bf16_supported",
    "is_current_stream_capturing",
    "is_initialized",
    "is_tf32_supported",
    "list_gpu_processes",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "mem_get_info",
    "memory",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "memory_stats_as_nested_dict",
    "memory_summary",
    "nvtx",
    "profiler",
    "random",
    "reset_accumulated_memory_stats",
    "reset_counters",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "set_sync_debug_mode",
    "sparse",
    "stream",
    "streams",
    "synchronize",
]

has_half = has_magma = True  # half precision and linear algebra run on the device
sparse = legacy.SPARSE
globals().update(legacy.TENSORS, **legacy.STORAGES)  # torch.trn.FloatTensor, FloatStorage, ...

_CODE_GENERATORS = ("Scheduling", "PythonWrapperCodegen", "CppWrapperCodegen", "WrapperFxCodegen")

register(__name__)
_install_graphs()


def __getattr__(name: str) -> Any:
    if name == "_initialized":  # torch.utils.checkpoint keeps random state only if it is true
        return is_initialized()
    if name in _CODE_GENERATORS:  # Inductor asks for them
        from ..compiler.inductor import hook

        return hook(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
