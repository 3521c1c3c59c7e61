"""The matmul precision policy: for the process, for a block of code, for a module.

    torch.backends.trn.matmul.precision = "bf16"          # the process
    with torch_trn_emu.precision("fp32"): ...             # this thread, this block; or a decorator
    torch_trn_emu.set_precision(model.lm_head, "bf16")    # this module, forward and backward

The policies are the rows of csrc/aten/policy.cpp; docs/fidelity.md states what each computes.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ContextDecorator
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch.autograd.graph import Node

from . import _C
from .annotation import closed, opened
from .settings import settings
from .torch_private import sequence_number, tree_leaves

__all__ = ["POLICIES", "chosen_precision", "current_precision", "precision", "set_precision"]

POLICIES: tuple[str, ...] = tuple(_C.policy_names())
_OWNED = "trn_precision"  # key in a backward node's metadata: an inner module has set its policy


def _code(policy: str) -> int:
    if policy not in POLICIES:
        raise ValueError(f"unknown precision {policy!r}; choose from {', '.join(POLICIES)}")
    return POLICIES.index(policy)


def current_precision() -> str:
    """Return the matmul policy that is active in this thread."""
    return POLICIES[int(_C.current_policy())]


def chosen_precision() -> str | None:
    """The policy that the user chose for this thread or process; None: the chip's default holds."""
    policy = _C.exchange_thread_policy(-1)
    _C.exchange_thread_policy(policy)
    if policy >= 0:
        return POLICIES[int(policy)]
    return current_precision() if _Matmul.assigned or settings().matmul_precision else None


class _Entered(threading.local):
    """What one thread has to put back, the last one first: policies are those of threads."""

    def __init__(self) -> None:
        self.stack: list[Any] = []

    def __reduce__(self) -> tuple[type["_Entered"], tuple[()]]:
        return _Entered, ()  # what is copied or pickled has entered nothing


class precision(ContextDecorator):
    """Context manager and decorator that sets the matmul policy of this thread.

    It applies to what runs inside: a backward pass outside the block uses the policy outside.
    """

    def __init__(self, policy: str) -> None:
        self._policy = _code(policy)
        self._previous: dict[int, list[int]] = {}  # by thread: Dynamo traces what makes a dict

    def __enter__(self) -> None:
        if torch.compiler.is_dynamo_compiling():
            opened(POLICIES[self._policy])
            return
        previous = _C.exchange_thread_policy(self._policy)
        self._previous.setdefault(threading.get_ident(), []).append(previous)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if torch.compiler.is_dynamo_compiling():
            closed()
            return
        _C.exchange_thread_policy(self._previous[threading.get_ident()].pop())


def set_precision(module: torch.nn.Module, policy: str | None) -> None:
    """Set the policy of `module` and its children, forward and backward.

    The policy of an inner module overrides that of an outer one. None removes the policy.
    """
    for handle in module.__dict__.pop("_trn_precision_hooks", ()):
        handle.remove()
    if policy is None:
        return
    override = _Override(_code(policy))
    module.__dict__["_trn_precision_hooks"] = (
        module.register_forward_pre_hook(override.enter, prepend=True),
        module.register_forward_hook(override.leave, always_call=True),
    )


# Backward nodes that multiply matrices, by the beginning of their name.
_MATMUL_NODES = (
    "MmBackward",
    "AddmmBackward",
    "BmmBackward",
    "BaddbmmBackward",
    "AddbmmBackward",
    "MvBackward",
    "AddmvBackward",
    "DotBackward",
    "ConvolutionBackward",
    "ScaledDotProduct",
    "LinearBackward",
)


class _Override:
    """Sets the thread's policy around a module's forward and the backward of its matmuls."""

    def __init__(self, policy: int) -> None:
        self._policy = policy
        self._entered = _Entered()  # (previous policy, first sequence number)

    def enter(self, module: torch.nn.Module, inputs: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            opened(POLICIES[self._policy])
            return
        first = sequence_number()
        self._entered.stack.append((_C.exchange_thread_policy(self._policy), first))

    def leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            closed()
            return
        previous, first = self._entered.stack.pop()
        _C.exchange_thread_policy(previous)
        for node in _nodes_since(output, first):
            metadata: Any = node.metadata  # a method to the stubs, a dict in fact (2.13)
            if node.name().startswith(_MATMUL_NODES) and _OWNED not in metadata:
                metadata[_OWNED] = self._policy
                _BackwardPolicy(self._policy).attach(node)


class _BackwardPolicy:
    """Sets the policy around a node; if that raises, `trn/backward.py` puts the old one back."""

    def __init__(self, policy: int) -> None:
        self._policy = policy
        self._previous = _Entered()

    def attach(self, node: Node) -> None:
        node.register_prehook(self._enter)
        node.register_hook(self._leave)

    def _enter(self, grad_outputs: Any) -> None:
        self._previous.stack.append(_C.exchange_thread_policy(self._policy))

    def _leave(self, grad_inputs: Any, grad_outputs: Any) -> None:
        _C.exchange_thread_policy(self._previous.stack.pop())


def _nodes_since(output: Any, first: int) -> Iterator[Node]:
    """Backward nodes made since sequence number `first`, reached from the tensors in `output`."""
    leaves = tree_leaves(output)
    pending = [x.grad_fn for x in leaves if isinstance(x, torch.Tensor) and x.grad_fn is not None]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in seen or node._sequence_nr() < first:
            continue
        seen.add(node)
        yield node
        pending += [parent for parent, _ in node.next_functions if parent is not None]


class _Matmul:
    """`torch.backends.trn.matmul`."""

    assigned = False  # a program has set the precision

    @property
    def precision(self) -> str:
        """The process's policy, unless this thread is inside a `precision` block."""
        return current_precision()

    @precision.setter
    def precision(self, policy: str) -> None:
        _C.set_process_policy(_code(policy))
        _Matmul.assigned = True


class _Backends(ModuleType):
    """`torch.backends.trn`: process-wide switches, as `torch.backends.cuda` has."""

    matmul = _Matmul()

    @staticmethod
    def is_built() -> bool:
        return True

    def __dir__(self) -> list[str]:
        return ["is_built", "matmul"]


def install() -> None:
    """Set the process's policy from the environment or the chip, and add `torch.backends.trn`."""
    chosen = settings()
    _C.set_process_policy(_code(chosen.matmul_precision or chosen.chip.default_matmul_precision))
    _C.set_stochastic_rounding(chosen.stochastic_rounding, chosen.stochastic_rounding_seed)
    module = _Backends("torch.backends.trn")
    torch.backends.trn = module  # type: ignore[attr-defined]
    sys.modules["torch.backends.trn"] = module
