"""Modules of torch that ask for literal device names and have no registration for it.

They are imported late, if at all: `ADAPTED` says what is done once one has been. The replaced
functions do for other devices what they did. Checked on torch 2.13.0.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from ..importing import when_imported
from ..settings import DEVICE_TYPE
from ..torch_private import COMPILE_FX, DECOMPOSITIONS, DispatchKey, flex_operators

__all__ = ["ADAPTED", "install"]


def _flex_attention(module: Any) -> None:
    """Let FlexAttention take trn tensors, and those of `meta` in estimates.

    Its list is of CUDA, CPU, XPU, HPU and MPS.
    """
    checked = module._validate_device

    @wraps(checked)
    def validate(query: Any, key: Any, value: Any) -> None:
        if query.device.type not in (DEVICE_TYPE, "meta"):
            checked(query, key, value)

    module._validate_device = validate
    operators = flex_operators()
    keys: Any = DispatchKey
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
        plain = importlib.import_module("torch_trn_emu.compiler.without_backend")
        if inner_compile is inner and plain.is_for_trn(gm, inputs):
            patches = rest[0] if rest else named.get("config_patches")
            return plain.compile_plainly(gm, inputs, patches)
        return compile_fx(gm, inputs, inner_compile, *rest, **named)

    module.compile_fx = chosen


def _decompositions(module: Any) -> None:
    """Decompose recurrent layers in graphs as on the CPU: the device's kernels would come first."""
    del module
    keys: Any = DispatchKey
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        packet = getattr(torch.ops.aten, name)
        for overload in (packet.input, packet.data):
            made = overload.py_kernels[DispatchKey.Autograd]
            for key in (keys.PrivateUse1, keys.AutogradPrivateUse1):
                overload.py_impl(key)(made)


ADAPTED: dict[str, Callable[[Any], None]] = {
    COMPILE_FX: _compile_fx,
    DECOMPOSITIONS: _decompositions,
    "torch.nn.attention.flex_attention": _flex_attention,
}


def install() -> None:
    """Adapt what is imported already, and the rest when it is."""
    for name, adapt in ADAPTED.items():
        when_imported(name, adapt)
