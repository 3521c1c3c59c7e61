"""Private names of Dynamo, which takes a second to import, as this module does."""

from typing import Any

from torch._dynamo import config, trace_rules
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
    "config",
    "counters",
    "graph_being_traced",
    "guard_on_call",
    "list_backends",
    "lookup_backend",
    "run_untraced",
]


def run_untraced(module: str) -> None:
    """Have Dynamo call the functions of a module, not trace them; else random states are lost."""
    trace_rules.add(module)


def graph_being_traced() -> Any:
    """Dynamo's output graph: the marks of precision go there."""
    return InstructionTranslator.current_tx().output


def guard_on_call(package: str, module: str, function: str) -> None:
    """Have Dynamo trace again once `package.module.function()` returns something else."""
    found = AttrSource(ImportSource(package), module)
    source = CallFunctionNoArgsSource(AttrSource(found, function))
    install_guard(source.make_guard(GuardBuilder.EQUALS_MATCH))
