"""Gloo groups that a script makes itself take tensors of cuda under `--as-cuda`, as with CUDA.

Those of `init_process_group("gloo")` serve cuda by the backend of trn. A collective works on the
host's views of its tensors. Checked on torch 2.13.0.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from .. import _C
from ..torch_private import tree_map, tree_map_only

__all__ = ["map_gloo"]

# gloo refuses CUDA's tensors in the others: messages, coalesced collectives.
_METHODS = (
    "_allgather_base allgather allreduce alltoall alltoall_base broadcast gather reduce scatter"
).split()


class _Lent:
    """The work of an operation on what tensors of cuda lent; it returns those tensors."""

    def __init__(self, work: Any, given: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._work, self._given = work, given

    def _as_given(self, value: Any) -> Any:
        for tensor, lent in self._given.values():
            if tensor.layout is not torch.strided:  # has no memory that could be lent
                tensor.copy_(lent)

        def found(lent: torch.Tensor) -> torch.Tensor:
            known = self._given.get(id(lent))
            return known[0] if known else lent.to("trn")

        return tree_map_only(torch.Tensor, found, value)

    def wait(self, *args: Any, **kwargs: Any) -> bool:
        done: bool = self._work.wait(*args, **kwargs)
        self._as_given(())
        return done

    def block_current_stream(self) -> None:
        self.wait()

    def get_future(self) -> Any:
        return self._work.get_future().then(lambda done: self._as_given(done.value()))

    def result(self) -> Any:
        return self._as_given(self._work.result())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _lending(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def lend(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.is_cpu:
                return value
            lent = _C.host_alias(value) if value.layout is torch.strided else value.cpu()
            given[id(lent)] = value, lent
            return lent

        work = method(self, *tree_map(lend, args), **tree_map(lend, kwargs))
        return _Lent(work, given) if given else work

    return call


def map_gloo() -> None:
    """Where this torch has gloo."""
    kind: Any = getattr(torch.distributed, "ProcessGroupGloo", None)
    if kind is None:
        return
    for name in _METHODS:
        setattr(kind, name, _lending(getattr(kind, name)))
