"""`estimate`: what a function would take on a chip, from the shapes of its arguments alone.

    x = torch.empty(4096, 4096, device="meta")
    torch_trn_emu.estimate(torch.mm, x, x, chip="trn3").time_us

Arguments and models on `meta`, or fake tensors: nothing is computed. The operators that the
function calls, in forward and backward, are priced like those that run on the device. Checked on
torch 2.13.0.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch

from .. import _C
from ..calls import Target
from ..chip import get_chip
from ..compiler.replaced import backend_replaced
from ..torch_private import (
    DYNAMO,
    with_constants_of_meta,
    with_device_kernels_on_meta,
    with_optimizers_of_meta,
)
from .composites import kernel_of_device
from .device_operators import OperatorsOfTheDevice, fused_attention
from .meta_results import is_counted, tensors_in
from .recorder import Recorder
from .result import Estimate

__all__ = [
    "MODES",
    "Estimate",
    "OperatorsOfTheDevice",
    "Recorder",
    "estimate",
    "is_counted",
    "kernel_of_device",
    "tensors_in",
]

MODES = ("eager", "compile")


def estimate(
    fn: Callable[..., Any],
    *args: Any,
    chip: str = "trn3",
    lnc: int | None = None,
    mode: str = "eager",
    **kwargs: Any,
) -> Estimate:
    """Price `fn(*args, **kwargs)`: an operator, a module, or a whole training step.

    chip  a chip, as TRN_EMU_CHIP
    lnc   physical cores of the logical core; None: the chip's default (2 from trn2)
    mode  "eager": each operator is a launch; "compile": as torch.compile(fn, backend="trn") runs
          it, one launch a graph

    The matmul precision is the one that the environment, `torch.backends.trn.matmul.precision` or
    a `precision` block chose, else the chip's default; `Estimate.precision` names it. Flags of
    `torch.cond` and `while_loop` have no values here: the first branch is taken, a loop makes one
    pass.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose from eager, compile")
    described = get_chip(chip)
    cores = described.check_lnc(lnc)
    recorder = Recorder(Target(described, cores))
    precision = recorder.policy()
    with ExitStack() as stack:
        stack.callback(recorder.memory.close)
        with_optimizers_of_meta(stack)
        with_constants_of_meta(stack)
        with_device_kernels_on_meta(stack, _C.clear_casts_of_meta)
        stack.enter_context(OperatorsOfTheDevice())
        stack.enter_context(recorder)
        stack.callback(recorder.memory.close)  # also if fn raises
        recorder.memory.hold(tensors_in(args, kwargs))
        _price_graphs(recorder, mode, stack)
        if mode == "compile":
            fn = _compiled(fn, recorder, stack)
        result = fn(*args, **kwargs)
    del result
    return recorder.result(described, cores, mode, precision)


_compiling: list["Recorder"] = []  # whose graphs run, innermost last


def _price_graphs(recorder: Recorder, mode: str, stack: ExitStack) -> None:
    """While `stack` is open, what compiles itself is priced as backend `trn` would run it.

    A graph that an earlier estimate compiled serves another of the same chip and cores.
    """

    def priced(gm: Any, inputs: Any) -> Any:
        return _shared_backend(recorder.policy(), recorder.target)(gm, inputs)

    target = recorder.target
    stack.enter_context(backend_replaced(priced, f"{target.chip.name} LNC={target.cores}"))
    _compiling.append(recorder)
    stack.callback(_compiling.pop)
    if mode == "compile" or DYNAMO in sys.modules:  # which takes a second to import
        from ..torch_private.dynamo import compiled_apart

        compiled_apart(stack)


def _compiled(fn: Callable[..., Any], recorder: Recorder, stack: ExitStack) -> Callable[..., Any]:
    """`fn` compiled for prices while `stack` is open; equal estimates share their graphs."""
    from ..compiler.estimate import composites_apart

    stack.enter_context(composites_apart())
    backend = _shared_backend(recorder.policy(), recorder.target)
    return torch.compile(fn, backend=backend, dynamic=False)


@cache
def _shared_backend(policy: str, target: Target) -> Callable[..., Any]:
    """One backend for each policy and target: Dynamo compiles a function again for another."""
    from ..compiler.estimate import pricing_backend

    def told(run: Callable[[], Any]) -> Any:
        return _compiling[-1].run_graph(run)

    return pricing_backend(policy, target, told, fused_attention)
