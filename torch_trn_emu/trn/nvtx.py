"""`torch.trn.nvtx`, as `torch.cuda.nvtx`: marks that show as rows in the profiler's trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import local
from typing import Any

from torch.profiler import record_function

__all__ = ["mark", "range", "range_end", "range_pop", "range_push", "range_start"]


class _Open(local):
    def __init__(self) -> None:
        self.pushed: list[record_function] = []


_open = _Open()
_started: dict[int, record_function] = {}
_numbers = count(1)


def range_push(msg: str) -> int:
    """Open a range that `range_pop` closes. Returns its depth, 0 for the outermost."""
    _open.pushed.append(_entered(msg))
    return len(_open.pushed) - 1


def range_pop() -> int:
    """Close the innermost range of this thread. Returns its depth, -2 where none is open."""
    if not _open.pushed:
        return -2
    _open.pushed.pop().__exit__(None, None, None)
    return len(_open.pushed)


def range_start(msg: str) -> int:
    """Open a range that may overlap others. Returns the number by which `range_end` closes it."""
    number = next(_numbers)
    _started[number] = _entered(msg)
    return number


def range_end(range_id: int) -> None:
    """Close the range that `range_start` numbered; an unknown number does nothing, as on CUDA."""
    if (found := _started.pop(range_id, None)) is not None:
        found.__exit__(None, None, None)


def mark(msg: str) -> None:
    """Mark a moment: a range that ends at once."""
    _entered(msg).__exit__(None, None, None)


@contextmanager
def range(msg: str, *args: Any, **kwargs: Any) -> Iterator[None]:
    """A context manager and decorator: a range named by `msg.format(*args, **kwargs)`."""
    range_push(msg.format(*args, **kwargs))
    try:
        yield
    finally:
        range_pop()


def _entered(msg: str) -> record_function:
    found = record_function(msg)
    found.__enter__()
    return found
