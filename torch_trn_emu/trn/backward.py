"""Runs backward on the thread that asks for it: docs/decisions/0004. Checked on torch 2.13.0."""

from typing import Any

import torch

from .. import _C
from ..torch_private import (
    ImperativeEngine,
    is_multithreading_enabled,
    set_autograd_engine,
    set_multithreading_enabled,
)

__all__ = ["OneThread", "keep_backward_on_the_calling_thread"]


class OneThread(ImperativeEngine):
    """torch's engine, with its own threads off while it runs; the user's setting stays.

    So does the thread's precision policy: a node that raises never runs the hook that would put
    back the policy of a module. Not in a frame that Dynamo traces, which cannot call into the
    library.
    """

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        before = is_multithreading_enabled()
        policy = None
        if not torch.compiler.is_dynamo_compiling():
            policy = _C.exchange_thread_policy(-1)
            _C.exchange_thread_policy(policy)
        set_multithreading_enabled(False)
        try:
            return super().run_backward(*args, **kwargs)
        finally:
            set_multithreading_enabled(before)
            if policy is not None:
                _C.exchange_thread_policy(policy)


def keep_backward_on_the_calling_thread() -> None:
    """Replace the engine that `Tensor.backward` and `torch.autograd.grad` call."""
    set_autograd_engine(OneThread())
