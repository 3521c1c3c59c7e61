"""Which backend takes the place of `trn` meanwhile: one that prices graphs, say.

Dynamo is not imported for it: an estimate of what nobody compiles need not wait for that.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.fx import GraphModule

__all__ = ["Backend", "backend_replaced", "replaced_for", "replacement"]

Backend = Callable[[GraphModule, Sequence[Any]], Any]
_replacement: tuple[Backend, str] | None = None


@contextlib.contextmanager
def backend_replaced(other: Backend, key: str) -> Iterator[None]:
    """Give what is compiled for trn to another backend.

    key  graphs of one key run where another of it is asked for; it is not empty
    """
    global _replacement
    previous, _replacement = _replacement, (other, key)
    try:
        yield
    finally:
        _replacement = previous


def replacement() -> Backend | None:
    return _replacement[0] if _replacement else None


def replaced_for() -> str:
    """The key; Dynamo traces again what it compiled for another."""
    return _replacement[1] if _replacement else ""
