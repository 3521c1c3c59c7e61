"""What Inductor finds where it keeps the code generators of a device: an error with the remedy.

Graphs of `torch.compile` never come here (`plain.py`); what calls Inductor by other ways does.
Inductor looks for these names in `torch.trn`. Checked on torch 2.13.0.
"""

from typing import Any, NoReturn

from ..errors import Unsupported
from ..settings import DEVICE_TYPE

__all__ = ["hook"]


class _Refusal:
    """Stands where Inductor keeps the code generators of a device."""

    supports_caching = False

    def __init__(self, *_: Any) -> None:
        self.create()

    @staticmethod
    def create(*_: Any) -> NoReturn:
        raise Unsupported(
            "Inductor alone does not support trn tensors, AOTInductor's libraries included. Use "
            "torch.compile(model), or torch.compile(model, backend='trn')."
        )


def hook(name: str) -> Any:
    """Inductor's code generator `name` for trn."""
    from ..torch_private.inductor import CpuDeviceOpOverrides, register_device_op_overrides

    register_device_op_overrides(DEVICE_TYPE, CpuDeviceOpOverrides())
    return _Refusal
