"""`torch.trn`: the device module, with the names of `torch.cuda` and the vendor's `torch.neuron`.

Importing it registers the device with torch.
"""

from typing import Any

from . import amp, random
from .amp import get_amp_supported_dtype, is_bf16_supported
from .device import (
    DeviceProperties,
    _is_in_bad_fork,  # noqa: F401  torch asks the device module for it
    _lazy_init,  # noqa: F401  likewise
    current_device,
    device,
    device_count,
    device_of,
    get_device_capability,
    get_device_name,
    get_device_properties,
    init,
    is_available,
    is_initialized,
    set_device,
    synchronize,
)
from .launches import counters, reset_counters
from .memory import (
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
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
    current_stream,
    default_stream,
    set_stream,
    stream,
)

__all__ = [
    "DeviceProperties",
    "Event",
    "Stream",
    "amp",
    "counters",
    "current_device",
    "current_stream",
    "default_generators",
    "default_stream",
    "device",
    "device_count",
    "device_of",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_rng_state",
    "get_rng_state_all",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "random",
    "reset_accumulated_memory_stats",
    "reset_counters",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "stream",
    "synchronize",
]

_CODE_GENERATORS = ("Scheduling", "PythonWrapperCodegen", "CppWrapperCodegen", "WrapperFxCodegen")

register(__name__)


def __getattr__(name: str) -> Any:
    if name == "_initialized":  # torch.utils.checkpoint keeps random state only if it is true
        return is_initialized()
    if name in _CODE_GENERATORS:  # Inductor asks for them
        from ..compiler.inductor import hook

        return hook(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
