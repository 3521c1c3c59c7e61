"""Modules of torch that ask for literal device names and have no registration for it.

They are imported late, if at all: `ADAPTED` says what is done once one has been. The replaced
functions do for other devices what they did. Checked on torch 2.13.0.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from ..settings import DEVICE_TYPE

__all__ = ["ADAPTED", "install"]


def _flex_attention(module: Any) -> None:
    """Let FlexAttention take trn tensors: its list is of CUDA, CPU, XPU, HPU and MPS."""
    checked = module._validate_device

    @wraps(checked)
    def validate(query: Any, key: Any, value: Any) -> None:
        if query.device.type != DEVICE_TYPE:
            checked(query, key, value)

    module._validate_device = validate
    operators = importlib.import_module("torch._higher_order_ops.flex_attention")
    keys: Any = torch._C.DispatchKey
    operators.flex_attention.py_impl(keys.PrivateUse1)(_later("compiler.flex", "forward"))
    operators.flex_attention.py_impl(keys.AutocastPrivateUse1)(_later("compiler.flex", "autocast"))
    backward = operators.flex_attention_backward
    backward.py_impl(keys.PrivateUse1)(_later("compiler.flex", "backward"))


def _later(module: str, name: str) -> Callable[..., Any]:
    """A function of this package, whose module is imported by the first call."""

    def call(*arguments: Any, **named: Any) -> Any:
        found = importlib.import_module(f"torch_trn_emu.{module}")
        return getattr(found, name)(*arguments, **named)

    return call


def _compile_fx(module: Any) -> None:
    """Compile graphs with trn tensors by backend `trn` where torch.compile is given no backend."""
    compile_fx, inner = module.compile_fx, module.compile_fx_inner

    @wraps(compile_fx)
    def chosen(
        gm: Any, inputs: Sequence[Any], inner_compile: Any = inner, *rest: Any, **named: Any
    ) -> Any:
        plain = importlib.import_module("torch_trn_emu.compiler.plain")
        if inner_compile is inner and plain.is_for_trn(gm, inputs):
            patches = rest[0] if rest else named.get("config_patches")
            return plain.compile_plainly(gm, inputs, patches)
        return compile_fx(gm, inputs, inner_compile, *rest, **named)

    module.compile_fx = chosen


Adapt = Callable[[Any], None]
ADAPTED: dict[str, Adapt] = {
    "torch._inductor.compile_fx": _compile_fx,
    "torch.nn.attention.flex_attention": _flex_attention,
}


class _Loader(importlib.abc.Loader):
    """Loads a module as its own loader does, then adapts it."""

    def __init__(self, loader: Any, adapt: Adapt) -> None:
        self.loader, self.adapt = loader, adapt

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.adapt(module)

    def __getattr__(self, name: str) -> Any:  # get_source and others, which inspect asks for
        return getattr(self.loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.waiting = dict(ADAPTED)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        adapt = self.waiting.pop(fullname, None)
        if adapt is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, adapt)
        return spec


def install() -> None:
    """Adapt what is imported already, and the rest when it is."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    finder = _Finder()
    for name in [name for name in finder.waiting if name in sys.modules]:
        finder.waiting.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, finder)
