"""torch.distributed on trn: every collective says that it is not there yet.

DistributedDataParallel, FSDP and DTensor import and build; what they send between processes ends
here. The kernels lie above those of c10d, which look for a backend and do not find one. Checked on
torch 2.13.0.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import library

from ..errors import Unimplemented

__all__ = ["COLLECTIVES", "refuse_collectives"]

COLLECTIVES = (
    "_allgather_base_",
    "_reduce_scatter_base_",
    "allgather_",
    "allgather_coalesced_",
    "allgather_into_tensor_coalesced_",
    "allreduce_",
    "allreduce_coalesced_",
    "alltoall_",
    "alltoall_base_",
    "broadcast_",
    "gather_",
    "recv_",
    "recv_any_source_",
    "reduce_",
    "reduce_scatter_",
    "reduce_scatter_tensor_coalesced_",
    "scatter_",
    "send",
)
_KEPT: list[library.Library] = []  # a library's kernels go with it


def refuse_collectives() -> None:
    """Register the kernels, once."""
    if _KEPT or not torch.distributed.is_available():
        return
    made = library.Library("c10d", "IMPL")
    for name in COLLECTIVES:
        made.impl(name, _refusing(name), "AutogradPrivateUse1")
    _KEPT.append(made)


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*args: Any) -> Any:
        raise Unimplemented(
            f"torch.distributed: {name.strip('_')} of trn tensors needs a backend for the device, "
            "which is planned: torch_trn_emu/trn/distributed.py. Train in one process, or "
            "communicate copies on the host: dist.all_reduce(tensor.cpu())."
        )

    return refuse
