"""Registers `trn` with torch, once: name, device module, methods. Checked on torch 2.13.0."""

import sys

import torch

from .. import _C, accelerated
from ..host import host_name
from ..precision import install
from ..settings import ALIAS, DEVICE_TYPE, ISAS, settings
from ..torch_private import register_device_module
from . import late
from .amp import lower_to_bfloat16
from .backward import keep_backward_on_the_calling_thread
from .distributed import install_backend
from .fused_attention import register_fused_attention
from .jagged import install_jagged
from .optimizer_steps import collect_list_passes
from .pricer import install_pricer
from .sharing import register_reductions

__all__ = ["register", "startup_error"]

# Formats of torch that some generations of the chip do not have.
_LATER_DTYPES = frozenset(("float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn"))

_startup_error: Exception | None = None


def register(module_name: str) -> None:
    """Make `module_name` the device module and give torch the cores that the environment asks for.

    A wrong environment must not break `import torch`: it leaves no device, and the error is raised
    when a trn device is first asked for.
    """
    torch.utils.rename_privateuse1_backend(DEVICE_TYPE)  # type: ignore[attr-defined]
    register_device_module(DEVICE_TYPE, sys.modules[module_name])
    torch.utils.generate_methods_for_privateuse1_backend(  # type: ignore[attr-defined]
        for_storage=True
    )
    if ALIAS != "cuda":  # whose default is float16
        lower_to_bfloat16()
    keep_backward_on_the_calling_thread()
    register_reductions()
    collect_list_passes()
    install_jagged()
    global _startup_error
    try:
        chosen, host = settings(), host_name()
        install()
        install_backend(chosen.transport)
    except Exception as error:
        _startup_error = error
        return
    if chosen.isa is not None:
        _C.limit_isa(ISAS.index(chosen.isa))
    _C.configure(
        name=chosen.chip.name,
        device_count=len(chosen.visible_cores),
        hbm_bytes=chosen.chip.hbm_bytes_per_logical_core(chosen.lnc),
        dispatch_ns=round(chosen.chip.launch.eager_dispatch_s * 1e9),
        host=host,
    )
    _C.set_missing_dtypes(chosen.chip.name, sorted(_LATER_DTYPES - chosen.chip.native_dtypes))
    accelerated.register()
    late.install()
    install_pricer()
    register_fused_attention()
    if chosen.executor == "machine":
        from .executor import install as install_machine  # needs more of torch than most runs

        install_machine()


def startup_error() -> Exception | None:
    """Why there is no device, or None."""
    return _startup_error
