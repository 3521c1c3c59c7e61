"""What a function that is being compiled hears of its tensors under `--as-cuda`.

Dynamo answers for a tensor's device by itself, without asking the mode that answers in eager code,
and calls backends without modes. Checked on torch 2.13.0.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

from ..importing import when_imported
from ..torch_private import COMPILED_BY_BACKENDS, PASSED_OVER, TRACED_TENSORS, function_modes
from .cuda_callbacks import is_torchs
from .cuda_distributed import hears_real

__all__ = ["map_backends_of_scripts", "map_traced_tensors", "pass_over_frames"]


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


def map_backends_of_scripts(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    """A script's own backend runs with `mode()` on; what it makes of a graph finds it on."""

    def install(module: Any) -> None:
        kind = module.OutputGraph
        compile_graph = kind._call_user_compiler

        @wraps(compile_graph)
        def call(self: Any, *args: Any) -> Any:
            if not _is_of_script(self.compiler_fn):
                return compile_graph(self, *args)
            with mode():
                return compile_graph(self, *args)

        kind._call_user_compiler = call

    when_imported(COMPILED_BY_BACKENDS, install)


def _is_of_script(backend: Any) -> bool:
    """Whether a backend, below what Dynamo wraps it in, is code of the script or has some."""
    for wrapping in ("_torchdynamo_orig_backend", "compiler_fn"):
        if hasattr(backend, wrapping):
            return _is_of_script(getattr(backend, wrapping))
    if isinstance(backend, partial):
        backend = backend.func
    compilers = getattr(backend, "kwargs", {})  # of aot_autograd
    return any(callable(each) and not is_torchs(each) for each in (backend, *compilers.values()))
