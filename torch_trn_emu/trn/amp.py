"""`torch.trn.amp`: what autocast on trn may lower to, and the names of `torch.cuda.amp`."""

from collections.abc import Callable
from functools import partial, wraps
from threading import local
from typing import Any

import torch

from ..settings import DEVICE_TYPE

__all__ = [
    "GradScaler",
    "autocast",
    "custom_bwd",
    "custom_fwd",
    "get_amp_supported_dtype",
    "is_bf16_supported",
    "lower_to_bfloat16",
]

_DEFAULT = torch.bfloat16


class autocast(torch.amp.autocast_mode.autocast):
    """`torch.autocast("trn", ...)`."""

    def __init__(
        self,
        enabled: bool = True,
        dtype: torch.dtype = _DEFAULT,
        cache_enabled: bool = True,
    ) -> None:
        super().__init__(DEVICE_TYPE, enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler("trn", ...)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(DEVICE_TYPE, *args, **kwargs)


custom_fwd = partial(torch.amp.custom_fwd, device_type=DEVICE_TYPE)
custom_bwd = partial(torch.amp.custom_bwd, device_type=DEVICE_TYPE)


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Formats that autocast accepts, its default first."""
    return [_DEFAULT, torch.float16]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """bfloat16 is native on every generation."""
    return True


class _Thread(local):
    told = False


_thread = _Thread()


def lower_to_bfloat16() -> None:
    """Make bfloat16 the default of autocast on trn.

    torch keeps the default in each thread and has no hook for it (2.13), so a thread is told when
    it first makes an autocast block or sets a default of its own.
    """
    _tell_thread()
    kind: Any = torch.amp.autocast_mode.autocast
    kind.__init__ = _telling(kind.__init__)
    torch.set_autocast_dtype = _telling(torch.set_autocast_dtype)


def _tell_thread() -> None:
    if not _thread.told:
        _thread.told = True
        torch.set_autocast_dtype(DEVICE_TYPE, _DEFAULT)


def _telling(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        _tell_thread()
        function(*args, **kwargs)

    return call
