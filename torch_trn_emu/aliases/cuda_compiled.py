"""What a function that is being compiled hears of its tensors under `--as-cuda`.

Dynamo answers for a tensor's device by itself, without asking the mode that answers in eager code.
Checked on torch 2.13.0.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ..importing import when_imported
from ..torch_private import PASSED_OVER, TRACED_TENSORS, function_modes
from .cuda_distributed import hears_real

__all__ = ["map_traced_tensors", "pass_over_frames"]


def pass_over_frames() -> None:
    """The line of a script that torch shows is not one of this package, whose mode calls torch."""
    own = {str(path) for path in Path(__file__).parent.glob("*.py")}

    def install(module: Any) -> None:
        known = module.uninteresting_files
        module.uninteresting_files = cache(lambda: known() | own)

    when_imported(PASSED_OVER, install)


def map_traced_tensors(to_cuda: Callable[[Any], Any], alias: type) -> None:
    """Traced tensors say cuda to the script, as they do in eager code where the mode `alias` is.

    `torch.export` leaves the modes on while it traces; `torch.compile` traces them.
    """

    def translates(tx: Any) -> bool:
        state = tx.symbolic_torch_function_state
        handling = [state.cur_mode] if state.cur_mode else []  # what a subclass is called by
        traced = [mode.value for mode in [*state.mode_stack, *handling]]
        return any(isinstance(mode, alias) for mode in [*traced, *function_modes()])

    def install(module: Any) -> None:
        kind, build = module.TensorVariable, module.VariableTracker.build
        real_device, real_is_cuda = kind.method_attr_device, kind.method_attr_is_cuda

        def device(self: Any, tx: Any) -> Any:
            if self.device is None or hears_real(tx.f_globals) or not translates(tx):
                return real_device(self, tx)
            return build(tx, to_cuda(self.device))

        def is_cuda(self: Any, tx: Any) -> Any:
            if self.device is None or not translates(tx):
                return real_is_cuda(self, tx)
            return build(tx, self.device.type == "trn")

        kind.method_attr_device, kind.method_attr_is_cuda = device, is_cuda

    when_imported(TRACED_TENSORS, install)
