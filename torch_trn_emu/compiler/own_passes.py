"""Runs passes of this compiler where Inductor takes a user's. Checked on torch 2.13.0."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import Graph

from ..torch_private.inductor import CustomGraphPass, config

__all__ = ["passes_added"]

Pass = Callable[[Graph], int]  # gives how much it has changed


class _Passes(CustomGraphPass):
    def __init__(self, passes: tuple[Pass, ...]) -> None:
        self.passes = passes

    def __call__(self, graph: Graph) -> None:
        for one in self.passes:
            one(graph)

    def uuid(self) -> Any:
        return f"trn: {', '.join(one.__name__ for one in self.passes)}"


@contextmanager
def passes_added(option: str, *passes: Pass) -> Iterator[None]:
    """Compile with passes after those that the user has put into an option of Inductor's."""
    given: Any = getattr(config, option)
    users = () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
    with config.patch({option: (*users, _Passes(passes))}):
        yield
