"""Private names of Dynamo, which takes a second to import, as this module does."""

from contextlib import ExitStack
from functools import reduce
from typing import Any
from unittest import mock

from torch._dynamo import config, eval_frame, trace_rules
from torch._dynamo.backends.registry import (
    list_backends,  # torch_neuronx.neuron_backend
    lookup_backend,  # torch.compile under the name cuda, from several threads
)
from torch._dynamo.eval_frame import OptimizedModule  # `trn-emu estimate --compile`
from torch._dynamo.exc import (
    BackendCompilerFailed,  # which errors run a graph eagerly, here and below
    SkipFrame,  # the hooks that set the precision of modules
    TorchDynamoException,
)
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import AttrSource, CallFunctionNoArgsSource, ImportSource
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.utils import counters  # graph breaks in torch.trn.compiler.report()

__all__ = [
    "BackendCompilerFailed",
    "OptimizedModule",
    "SkipFrame",
    "TorchDynamoException",
    "compiled_apart",
    "config",
    "counters",
    "graph_being_traced",
    "guard_on_call",
    "list_backends",
    "lookup_backend",
    "run_untraced",
]

_SHARED = -1  # the region of compiled code without one of its own
_APART = next(eval_frame._next_isolate_recompiles_id)  # and that of estimates


def run_untraced(module: str) -> None:
    """Have Dynamo call the functions of a module, not trace them; else random states are lost."""
    trace_rules.add(module)


def graph_being_traced() -> Any:
    """Dynamo's output graph: the marks of precision go there."""
    return InstructionTranslator.current_tx().output


def guard_on_call(package: str, *names: str) -> None:
    """Have Dynamo trace again once a function of the package's modules gives something else."""
    source: Any = reduce(AttrSource, names, ImportSource(package))  # type: ignore[arg-type]
    install_guard(CallFunctionNoArgsSource(source).make_guard(GuardBuilder.EQUALS_MATCH))


def compiled_apart(stack: ExitStack) -> None:
    """While `stack` is open what is compiled does not count among what was compiled before.

    Each shape is compiled, however many there are: at its limits Dynamo would go on eagerly, then
    and later.
    """
    unlimited = 1 << 30
    limits = config.patch(recompile_limit=unlimited, accumulated_recompile_limit=unlimited)
    stack.enter_context(limits)
    frames: Any = eval_frame
    choose = frames.set_eval_frame_isolate_recompiles_id

    def apart(region: int) -> Any:
        return choose(_APART if region == _SHARED else region)

    chosen = mock.patch.object(eval_frame, "set_eval_frame_isolate_recompiles_id", apart)
    stack.callback(choose, frames.get_eval_frame_isolate_recompiles_id())
    stack.enter_context(chosen)
