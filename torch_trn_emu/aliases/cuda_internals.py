"""What libraries use past the functions of `torch.cuda`, under `--as-cuda`.

A build of torch without CUDA has hardly any `torch._C._cuda_...`. Those of the tables do what their
namesakes of torch.trn do; whatever CUDA alone has stays absent. Checked on torch 2.13.0.
"""

from collections.abc import Callable
from typing import Any

import torch

from .. import trn
from ..settings import DEVICE_TYPE
from ..torch_private import set_functions_of_torch_c

__all__ = ["exchange_device", "map_internals"]


def _set_stream(stream_id: int, device_index: int, device_type: int) -> None:
    stream = trn.Stream(stream_id=stream_id, device_index=device_index, device_type=device_type)
    trn.set_stream(stream)


def _packed(stream: torch.Stream) -> tuple[int, int, int]:
    return stream.stream_id, stream.device_index, stream.device_type


def _nothing(*args: Any) -> None:
    """For what trn does not keep: workspaces of libraries."""


def exchange_device(index: int) -> int:
    """Make the device current and return the one that was; -1 for a negative index."""
    before = trn.current_device()
    if index < 0:
        return -1
    trn.set_device(index)
    return before


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "init": trn.init,
    "getDeviceCount": trn.device_count,
    "getDevice": trn.current_device,
    "setDevice": trn.set_device,
    "exchangeDevice": exchange_device,
    "maybeExchangeDevice": exchange_device,
    "synchronize": trn.synchronize,
    "sleep": trn.streams._sleep,
    "setStream": _set_stream,
    "getCurrentStream": lambda index: _packed(trn.current_stream(index)),
    "getDefaultStream": lambda index: _packed(trn.default_stream(index)),
    "getCurrentRawStream": lambda index: trn.current_stream(index).stream_id,
    "isCurrentStreamCapturing": trn.is_current_stream_capturing,
    "canDeviceAccessPeer": trn.can_device_access_peer,
    "emptyCache": trn.empty_cache,
    "memoryStats": trn.memory_stats_as_nested_dict,
    "resetPeakMemoryStats": trn.reset_peak_memory_stats,
    "resetAccumulatedMemoryStats": trn.reset_accumulated_memory_stats,
    "setMemoryFraction": lambda fraction, index: trn.set_per_process_memory_fraction(
        fraction, torch.device(DEVICE_TYPE, index)
    ),
    "getMemoryFraction": trn.get_per_process_memory_fraction,
    "getAllocatorBackend": trn.get_allocator_backend,
    "ipc_collect": trn.ipc_collect,
    "get_sync_debug_mode": trn.get_sync_debug_mode,
    "set_sync_debug_mode": trn.set_sync_debug_mode,
    "clearCublasWorkspaces": _nothing,
    "getArchFlags": lambda: None,
}


def _state(name: str) -> Any:
    """Attributes of torch.cuda whose value changes: `torch.utils.checkpoint` reads `_initialized`,
    and keeps the random state of the device only if it is true.
    """
    if name == "_initialized":
        return trn.is_initialized()
    raise AttributeError(f"module 'torch.cuda' has no attribute {name!r}")


def map_internals() -> None:
    """Put the functions in torch._C, and the state in torch.cuda."""
    cuda: Any = torch.cuda
    del cuda._initialized  # all functions that read it there are mapped
    cuda.__getattr__ = _state
    set_functions_of_torch_c({f"_cuda_{name}": f for name, f in FUNCTIONS.items()})
