"""Operators that run on trn in compiled graphs, as they do outside of them.

They are those of other libraries, and those of torch in formats that the host's kernels lack, which
trn computes wider (csrc/aten/wider.cpp).

The host code of a graph calls an operator with tensors in host memory, for which its library may
have another kernel than for trn, or one that asks for the device. So the code calls a second
operator instead, which hands the tensors to the first on trn. Checked on torch 2.13.0.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .. import _C
from ..calls import Call, Target, is_of_library
from ..host import host_device
from ..pricing import Price, combined, price_call
from ..settings import DEVICE_TYPE
from ..torch_private import OpOverload, has_kernel, tree_leaves, tree_map
from .calls import plain
from .records import warn_unknown

__all__ = [
    "OwnKernel",
    "define",
    "is_own",
    "kernels_of",
    "own_operators",
    "price_of_own",
    "to_own_kernels",
]

_SPACE = "trn_own"
_library = torch.library.Library(_SPACE, "FRAGMENT")
# Of torch, in formats of 16 bits: those that no decomposition spells out in float32.
_WIDER = re.compile(r"aten::(_upsample_bi(linear|cubic)2d_aa|multi(label)?_margin_loss|avg_pool3d)")
_HALVES = frozenset({torch.float16, torch.bfloat16})


@dataclass(frozen=True)
class OwnKernel:
    """An operator on a core; `moved` tells which of its tensors, in order, are trn's."""

    operator: str  # "mylib::scale.default"
    device: int
    moved: tuple[bool, ...] | None  # None: all

    @property
    def name(self) -> str:
        which = "all" if self.moved is None else "".join("ny"[one] for one in self.moved)
        return re.sub(r"\W", "_", f"{self.operator}_{self.device}_{which}")


def is_own(target: Any) -> bool:
    """Whether the operator is another library's, with a kernel that trn tensors reach."""
    if not isinstance(target, OpOverload) or not is_of_library(target.name()):
        return False
    keys = ("PrivateUse1", "CompositeExplicitAutograd")
    return target.namespace != _SPACE and any(has_kernel(target.name(), key) for key in keys)


def _called_by(node: Node) -> Any:
    """The operator of a node, also where functionalization hides one that writes its operands."""
    hidden = bool(node.args) and "auto_functionalized" in str(node.target)
    return node.args[0] if hidden else node.target


def _wider(node: Node, values: Iterable[torch.Tensor]) -> bool:
    """Whether the operator is torch's, and the host has no kernel for the formats of its tensors.

    For complex32 the host has few kernels, and trn has all of those as well.
    """
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return False
    arguments, dtypes = target._schema.arguments, {value.dtype for value in values}
    if any(argument.alias_info for argument in arguments):
        return False
    for argument, given in zip(arguments, node.args, strict=False):
        if str(argument.type) == "Tensor" and type(given) in (int, float, complex):
            return False  # the second operator takes no number for a tensor
    halves = bool(_WIDER.match(target.name())) and bool(dtypes & _HALVES)
    return halves or torch.complex32 in dtypes


def _values(node: Node) -> list[Any]:
    """What is known of the tensors among the arguments, in order."""
    found = [n.meta.get("val") for n in tree_leaves((node.args, node.kwargs)) if type(n) is Node]
    return [value for value in tree_leaves(found) if isinstance(value, torch.Tensor)]


def _kernel_of(node: Node, device: int) -> OwnKernel | None:
    if node.op != "call_function":
        return None
    values = _values(node)
    on_trn = tuple(value.device.type == DEVICE_TYPE for value in values)
    in_order = all(on_trn) or not any(type(n) is Node for n in tree_leaves(node.kwargs))
    called: Any = node.target
    if (is_own(called) or _wider(node, values)) and any(on_trn) and in_order:
        return OwnKernel(called.name(), device, on_trn)
    first = _called_by(node)
    if is_own(first) and on_trn and all(on_trn):
        return OwnKernel(first.name(), device, None)
    return None


def price_of_own(node: Node, call: Call, target: Target) -> Price | None:
    """What an operator of a library adds to its graph: nothing, if it launches what it runs."""
    called = _called_by(node)
    if not isinstance(called, OpOverload) or not is_of_library(called.name()):
        return None
    if is_own(called):
        return combined(called.name(), [], target.chip)
    warn_unknown(called.name())
    if called is not node.target:
        call = Call(called.name(), tuple(map(plain, _values(node))), ())
    return price_call(call, target)


def kernels_of(gm: GraphModule, device: int) -> tuple[OwnKernel, ...]:
    """The operators of a graph that run on trn."""
    found = (_kernel_of(node, device) for node in gm.graph.nodes)
    return tuple(dict.fromkeys(kernel for kernel in found if kernel))


def own_operators(gm: GraphModule) -> tuple[str, ...]:
    """Their names in a graph of Dynamo: with another kernel, cached code is another's."""
    return tuple(str(node.target) for node in gm.graph.nodes if is_own(node.target))


def to_own_kernels(gm: GraphModule, device: int) -> None:
    """Let a graph that is about to move to the host call the second operators."""
    for node in gm.graph.nodes:
        kernel = _kernel_of(node, device)
        if kernel and kernel.moved is None:
            node.update_arg(0, define(kernel))
        elif kernel:
            node.target = define(kernel)


def _overload(name: str) -> Any:
    space, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload or "default")


@cache
def define(kernel: OwnKernel) -> Any:
    """The second operator of one, made when it is first asked for."""
    real = _overload(kernel.operator)
    schema = str(real._schema)
    _library.define(kernel.name + schema[schema.index("(") :], tags=tuple(real.tags))
    name = f"{_SPACE}::{kernel.name}"
    _library.impl(name, _runs_on_trn(real, kernel), "CompositeExplicitAutograd")
    fake = real if is_own(real) else _runs_on_trn(real, kernel, lend=_like, back=_like_on_host)
    torch.library.register_fake(name, fake, lib=_library)
    return _overload(name)


def _runs_on_trn(
    real: Any,
    kernel: OwnKernel,
    lend: Callable[..., torch.Tensor] | None = None,
    back: Callable[[Any], Any] | None = None,
) -> Callable[..., Any]:
    """Calls the operator with what `lend` makes of tensors, and gives what `back` makes of results.

    Fakes of torch's operators do the same: without a kernel for meta, the device's own runs.
    """
    device = torch.device(DEVICE_TYPE, kernel.device)

    def run(*args: Any, **kwargs: Any) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        moved = kernel.moved or (True,) * len(given)
        lent = {
            id(value): (lend or _on_trn)(value, device)
            for value, moves in zip(given, moved, strict=True)
            if moves
        }

        def argument(value: Any) -> Any:
            if isinstance(value, torch.device):
                return device if value == host_device() else value
            return lent.get(id(value), value)

        results = real(*tree_map(argument, args), **tree_map(argument, kwargs))
        if real._schema.is_mutable:
            _write_back(given, lent)
        return tree_map(back or _on_host, results)

    return run


def _like(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_like(value, device=device)


def _like_on_host(value: Any) -> Any:
    return _like(value, host_device()) if isinstance(value, torch.Tensor) else value


def _on_trn(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    made = torch.empty_like(value, device=device)
    _C.host_alias(made).copy_(value)
    return made


def _write_back(given: Iterable[torch.Tensor], lent: dict[int, torch.Tensor]) -> None:
    for value in given:
        if id(value) in lent:
            value.copy_(_C.host_alias(lent[id(value)]))


def _on_host(value: Any) -> Any:
    on_trn = isinstance(value, torch.Tensor) and value.device.type == DEVICE_TYPE
    return _C.host_alias(value) if on_trn else value
