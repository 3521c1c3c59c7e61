"""`torch.compile(model)` without a backend on trn tensors: backend `trn`, which is said once.

Inductor alone makes no code for trn. What torch.compile does for other devices stays as it is.
Checked on torch 2.13.0.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from ..errors import Unsupported
from ..torch_private.inductor import V
from .backend import guard_on_prices, trn
from .move_to_host import device_of_graph, is_of_device
from .records import note_once
from .replaced import replacement

__all__ = ["compile_plainly", "is_for_trn"]

_OF_CUDA = "triton."  # options of code for GPUs


def is_for_trn(gm: Any, inputs: Sequence[Any]) -> bool:
    """Also a graph of `meta` in an estimate, which prices it; beside one, it is Inductor's."""
    if not isinstance(gm, GraphModule):
        return False
    if device_of_graph(gm, inputs) is not None:
        return True
    if not is_of_device("meta", gm, inputs):
        return False
    guard_on_prices(gm, inputs)
    return replacement() is not None


def compile_plainly(
    gm: GraphModule, inputs: Sequence[Any], patches: Mapping[str, Any] | None
) -> Any:
    """What Inductor is asked for, by our backend; `patches` are the mode and the options."""
    if V.aot_compilation:
        raise Unsupported(
            "AOTInductor supports CPUs and GPUs, not trn. Export the model on the "
            "CPU, or run it with torch.compile(model, backend='trn')."
        )
    if replacement() is None and note_once(
        "torch.compile without a backend: Inductor does not support trn, so backend 'trn' is used"
    ):
        print(
            "torch_trn_emu: torch.compile of trn tensors uses backend 'trn'.",
            file=sys.stderr,
        )
    options = {k: v for k, v in (patches or {}).items() if not k.startswith(_OF_CUDA)}
    return trn(gm, inputs, options=options)
