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
from .backend import trn
from .move_to_host import device_of_graph
from .records import note_once

__all__ = ["compile_plainly", "is_for_trn"]

_OF_CUDA = "triton."  # options of code for GPUs


def is_for_trn(gm: Any, inputs: Sequence[Any]) -> bool:
    return isinstance(gm, GraphModule) and device_of_graph(gm, inputs) is not None


def compile_plainly(
    gm: GraphModule, inputs: Sequence[Any], patches: Mapping[str, Any] | None
) -> Any:
    """What Inductor is asked for, by our backend; `patches` are the mode and the options."""
    if V.aot_compilation:
        raise Unsupported(
            "AOTInductor supports CPUs and GPUs, not trn. Export the model on the "
            "CPU, or run it with torch.compile(model, backend='trn')."
        )
    if note_once(
        "torch.compile without a backend: Inductor does not support trn, so backend 'trn' is used"
    ):
        print(
            "torch_trn_emu: torch.compile of trn tensors uses backend 'trn'.",
            file=sys.stderr,
        )
    options = {k: v for k, v in (patches or {}).items() if not k.startswith(_OF_CUDA)}
    return trn(gm, inputs, options=options)
