"""`torch.library` under `--as-cuda`: a kernel that a script registers for CUDA is one of trn.

torch's own kernels for CUDA stay where they are. Checked on torch 2.13.0.
"""

import re
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from ..torch_private import dispatch_key_for_device, set_functions_of_torch_c

__all__ = ["map_library"]

_KEY = re.compile(r"(Autograd|Autocast|Sparse|SparseCsr|Quantized|NestedTensor)?CUDA")
_REGISTERS = re.compile(r"(torch\._?(library|custom_ops?)|torch_trn_emu\.aliases)(\.|$)")


def _is_for_script() -> bool:
    """Whether the code that asked `torch.library` is not torch's."""
    frame = sys._getframe(2)
    while frame.f_back and _REGISTERS.match(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return not frame.f_globals.get("__name__", "").startswith("torch.")


def _told_trn(
    function: Callable[..., Any], of_trn: Callable[[Any], Any] | None = None
) -> Callable[..., Any]:
    translated = of_trn or _key_of_trn

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _is_for_script():
            return function(*args, **kwargs)
        named = {name: translated(value) for name, value in kwargs.items()}
        return function(*map(translated, args), **named)

    return call


def _key_of_trn(value: Any) -> Any:
    if isinstance(value, str) and _KEY.fullmatch(value):
        return value.replace("CUDA", "PrivateUse1")
    return value


def _key_for_device(device: Any) -> Any:
    return dispatch_key_for_device("trn" if device == "cuda" and _is_for_script() else device)


def _fakes_hear(function: Callable[..., Any], mode: Callable[[], Any]) -> Callable[..., Any]:
    """A registration of fakes: those of the script are called with `mode()` on."""

    @wraps(function)
    def register(self: Any, name: Any, fake: Any, _stacklevel: int = 1, **kwargs: Any) -> Any:
        @wraps(fake)
        def hears(*given: Any, **named: Any) -> Any:
            with mode():
                return fake(*given, **named)

        told = hears if _is_for_script() else fake
        return function(self, name, told, _stacklevel + 1, **kwargs)

    return register


def map_library(mode: Callable[[], Any], to_trn: Callable[[Any], Any]) -> None:
    """Kernels of the script for CUDA, and for devices of cuda, go to the key of trn."""
    kind: Any = torch.library.Library
    for name in ("__init__", "impl", "fallback", "_impl_with_aoti_compile"):
        setattr(kind, name, _told_trn(getattr(kind, name)))
    library: Any = torch.library
    custom = library.CustomOpDef
    for name in ("register_kernel", "set_kernel_enabled", "register_autocast"):
        setattr(custom, name, _told_trn(getattr(custom, name), to_trn))
    library.register_autocast = _told_trn(library.register_autocast, to_trn)
    kind._register_fake = _fakes_hear(kind._register_fake, mode)
    set_functions_of_torch_c({"_dispatch_key_for_device": _key_for_device})
