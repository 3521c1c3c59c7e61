"""Code of a script that an operator calls hears cuda as well, under `--as-cuda`.

A function mode is off while it handles a call. What the call runs of the script's own, such as a
tensor subclass, a dispatch mode, the kernel of a custom operator or a function given as an
argument, would hear trn, and could not name cuda. Checked on torch 2.13.0.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import lru_cache, wraps
from typing import Any

import torch

from ..importing import when_imported
from ..torch_private import (
    SHARDED_TENSORS,
    TRACED_BODIES,
    DeviceContext,
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    dispatch_mode_count,
    dispatch_modes,
    function_modes,
    function_modes_set_aside,
    overrides_functions,
    skip_function_modes,
    subclasses_are_asked,
    tree_leaves,
)

__all__ = [
    "calls_script",
    "is_torchs",
    "let_hear",
    "map_default_device",
    "map_traced_bodies",
]

# Checkpoints ask a policy of the script from a dispatch mode of torch's.
_TORCHS = re.compile(
    rf"(torch(?!\.utils\.checkpoint|{re.escape(SHARDED_TENSORS[5:])})|torch_trn_emu|numpy)(\.|$)"
)
_OPERATORS = re.compile(r"(aten|prims?|trn|c10d\w*|_c10d_functional\w*|quantized\w*|inductor)::")


def is_torchs(function: Any) -> bool:
    """Whether a function, or an object that is called, is of torch or of this package."""
    return bool(_TORCHS.match(getattr(function, "__module__", None) or ""))


@lru_cache(maxsize=1024)
def _is_scripts(kind: type) -> bool:
    """Whether a call of torch with a value of this type may run code of the script."""
    if kind.__module__ == "builtins":
        return kind.__name__ in {"function", "method"}
    own = not _TORCHS.match(kind.__module__)
    return own and any(hasattr(kind, name) for name in ("__torch_function__", "__call__"))


def _any_scripts(values: Iterable[Any]) -> bool:
    for value in values:
        kind: Any = type(value)
        if kind is torch.Tensor:
            continue
        if (kind is list or kind is tuple) and _any_scripts(value):
            return True
        if _is_scripts(kind):
            return True
    return False


def _is_operator_of_script(func: Any) -> bool:
    if isinstance(func, OpOverload):
        return not _OPERATORS.match(func.name())
    if isinstance(func, OpOverloadPacket):
        return not _OPERATORS.match(f"{func}".replace(".", "::"))
    return isinstance(func, HigherOrderOperator)


def calls_script(func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the call may run code of the script. Asked of each call: builtins come first."""
    if type(func).__module__ != "builtins" and _is_operator_of_script(func):
        return True
    if types and any(map(_is_scripts, types)):
        return True
    if _any_scripts(args) or (kwargs and _any_scripts(kwargs.values())):
        return True
    if not dispatch_mode_count():
        return False
    return any(not _TORCHS.match(type(mode).__module__) for mode in dispatch_modes())


def let_hear(
    mode: Callable[[], AbstractContextManager[Any]],
    func: Any,
    types: Any,
    args: Any,
    kwargs: dict[str, Any],
) -> Any:
    """The call, with `mode()` on in what it runs of the script.

    `Tensor.__torch_function__` calls a function again, and no subclass is asked then: one that is
    written in Python comes back here, for the mode.
    """
    values = tree_leaves((args, kwargs)) if types and subclasses_are_asked() else []
    first: list[Any] = [next((v for v in values if type(v) is kind), None) for kind in types]
    own = [value for value in first if overrides_functions(value)]
    with mode():
        if not own:
            return skip_function_modes(func, types, args, kwargs)
        for value in own:
            made = value.__torch_function__(func, types, args, kwargs)
            if made is not NotImplemented:
                return made
    return func(*args, **kwargs)  # which says that none of them took it


def map_default_device() -> None:
    """A default device can be replaced in a backward pass, where the mode of the alias alone is on.

    What torch takes off, its mode of the device before, is then not on the stack.
    """
    kind: Any = DeviceContext
    leave = kind.__exit__

    @wraps(leave)
    def call(self: Any, *args: Any) -> None:
        if any(isinstance(mode, DeviceContext) for mode in function_modes()):
            leave(self, *args)
            return
        with function_modes_set_aside():
            leave(self, *args)

    kind.__exit__ = call


def map_traced_bodies(alias: type) -> None:
    """Bodies of higher-order operators are traced in the mode `alias`, as what is around them is.

    A mode is off in what it handles, and these operators hand it their bodies. No operator is given
    a device, so that neither the mode nor a default device has anything to say of one.
    """

    def install(module: Any) -> None:
        for kind in _with_subclasses(module.TorchHigherOrderOperatorVariable):
            if "call_function" in vars(kind):
                kind.call_function = _past_modes(kind.call_function, alias)
            if "_call_function" in vars(kind):
                kind._call_function = _in_modes_again(kind._call_function)

    when_imported(TRACED_BODIES, install)


def _with_subclasses(kind: Any) -> list[Any]:
    return [kind, *(each for below in kind.__subclasses__() for each in _with_subclasses(below))]


def _past_modes(call: Callable[..., Any], alias: type) -> Callable[..., Any]:
    """Dynamo's call of an operator, which modes that say devices do not handle."""

    @wraps(call)
    def call_function(self: Any, tx: Any, *args: Any) -> Any:
        state = tx.symbolic_torch_function_state
        modes = [mode.value for mode in state.mode_stack]
        known = all(isinstance(mode, (alias, DeviceContext)) for mode in modes)
        if not (modes and known and state.torch_function_mode_enabled):
            return call(self, tx, *args)
        state.torch_function_mode_enabled, state.passes = False, True
        try:
            return call(self, tx, *args)
        finally:
            state.torch_function_mode_enabled, state.passes = True, False

    return call_function


def _in_modes_again(call: Callable[..., Any]) -> Callable[..., Any]:
    """Dynamo's trace of an operator's bodies, for which the modes are on."""

    @wraps(call)
    def call_function(self: Any, tx: Any, *args: Any) -> Any:
        state = tx.symbolic_torch_function_state
        if getattr(state, "passes", False):
            state.torch_function_mode_enabled, state.passes = True, False
        return call(self, tx, *args)

    return call_function
