"""Tells the recorder which module or optimizer runs, and which blocks of HBM hold what.

Modules and optimizers are watched by PyTorch's own global hooks, only while a profile is active.
Checked on torch 2.13.0.
"""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from .. import _C
from ..settings import DEVICE_TYPE
from ..torch_private import is_traceable_wrapper_subclass

__all__ = ["CATEGORIES", "PHASES", "Scopes"]

PHASES = ("other", "forward", "backward", "optimizer")  # csrc/runtime/recorder.h
CATEGORIES = ("parameters", "gradients", "optimizer state", "activations", "other")


_COMPILED = "_orig_mod"  # the module inside the one that torch.compile returns
_EXTRA_CALL = r"Using `torch.compile\(module\)` when there are global hooks"


class Scopes:
    """Numbers the modules and optimizers that run; `paths` names them by number.

    A path is the class of the outermost module and the names below it, "GPT.blocks.0.mlp_in". A
    second model of one class is "GPT (2)". `owners` gives the path that owns a parameter, by the
    address of its TensorImpl, which is how the autograd node of a leaf knows it.
    """

    def __init__(self, with_modules: bool) -> None:
        self.paths: list[str] = []
        self.owners: dict[int, str] = {}
        self._owned: dict[int, ref[Tensor]] = {}  # of an address whose tensor lives
        self._with_modules = with_modules
        self._numbers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._roots: dict[str, int] = {}
        self._running: list[str] = []
        self._parameters: list[ref[Tensor]] = []
        self._stepped: WeakSet[Optimizer] = WeakSet()
        self._handles: list[Any] = []
        self._filter: Any = None

    def watch(self) -> None:
        """Install the hooks; what is known from an earlier region is marked again."""
        mark("parameters", (known() for known in self._parameters))
        for optimizer in self._stepped:
            _mark_state(optimizer)
        self._handles += [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        if self._with_modules:
            # The extra call of the compiled module is the one that gives its scope.
            warnings.filterwarnings("ignore", message=_EXTRA_CALL)
            self._filter = warnings.filters[0]
            self._handles += [
                register_module_forward_pre_hook(self._enter),
                register_module_forward_hook(self._leave, always_call=True),
            ]

    def leave_alone(self) -> None:
        """Remove the hooks; gradients that are alive are marked as such."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
        self._running.clear()
        held = [tensor for known in self._parameters if (tensor := known()) is not None]
        mark("gradients", (tensor.grad for tensor in held))

    # --- modules ---------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, _arguments: Any) -> None:
        if torch.compiler.is_compiling():  # a graph is traced, nothing runs
            return
        number = self._numbers.get(module)
        if number is None:
            self._walk(module)
            number = self._numbers[module]
        self._running.append(self.paths[number])
        _C.enter_scope(number, PHASES.index("forward"))

    def _leave(self, _module: nn.Module, _arguments: Any, _result: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._running:
            self._running.pop()
        _C.leave_scope()

    def _walk(self, root: nn.Module) -> None:
        """Number a module that runs for the first time, and those below it."""
        name = type(getattr(root, _COMPILED, root)).__name__
        if self._running:
            above = f"{self._running[-1]}.{name}"
        else:
            self._roots[name] = self._roots.get(name, 0) + 1
            above = name if self._roots[name] == 1 else f"{name} ({self._roots[name]})"
        for below, module in root.named_modules():
            if module not in self._numbers:
                self._number(module, _joined(above, below.split(".")))
        for below, parameter in root.named_parameters():
            address = parameter._cdata
            if address not in self._owned or self._owned[address]() is None:  # freed since
                self.owners[address] = _joined(above, below.split(".")[:-1])
                self._owned[address] = ref(parameter)
        held = [*root.parameters(), *root.buffers()]
        self._parameters += [ref(tensor) for tensor in held]
        mark("parameters", held)
        mark("gradients", (tensor.grad for tensor in held))

    def _number(self, thing: object, path: str) -> int:
        self.paths.append(path)
        self._numbers[thing] = len(self.paths) - 1
        return len(self.paths) - 1

    # --- optimizers ------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, _arguments: Any, _keywords: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if optimizer not in self._numbers:
            self._number(optimizer, f"{type(optimizer).__name__} step")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        mark("gradients", (p.grad for p in parameters))
        if optimizer not in self._stepped:
            mark("parameters", parameters)
        _C.enter_scope(self._numbers[optimizer], PHASES.index("optimizer"))

    def _after_step(self, optimizer: Optimizer, _arguments: Any, _keywords: Any) -> None:
        if torch.compiler.is_compiling():
            return
        _C.leave_scope()
        if optimizer not in self._stepped:
            self._stepped.add(optimizer)
            _mark_state(optimizer)


def _joined(above: str, names: Iterable[str]) -> str:
    return ".".join([above, *(name for name in names if name and name != _COMPILED)])


def _mark_state(optimizer: Optimizer) -> None:
    states = (state for state in optimizer.state.values() if isinstance(state, dict))
    mark("optimizer state", (value for state in states for value in state.values()))


def mark(category: str, things: Iterable[Any]) -> None:
    """Say that the HBM blocks of the tensors among `things` hold `category`."""
    blocks = [
        t.untyped_storage().data_ptr()
        for thing in things
        for t in plain_tensors(thing)
        if t.device.type == DEVICE_TYPE and t.layout is torch.strided
    ]
    _C.mark_blocks(blocks, CATEGORIES.index(category))


def plain_tensors(thing: Any) -> Iterator[Tensor]:
    """A tensor, or those within one that wraps others, as DTensor; none of anything else."""
    if is_traceable_wrapper_subclass(thing):
        names, _ = thing.__tensor_flatten__()
        for name in names:
            yield from plain_tensors(getattr(thing, name))
    elif isinstance(thing, Tensor):
        yield thing
