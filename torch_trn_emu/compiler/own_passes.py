"""Passes of this compiler where Inductor takes a user's; one that keeps sums for the backward pass.

AOTAutograd computes again what it takes for free, and a reduction counts as free unless it makes
four values one. On the chip it is a pass over all that it reads. Checked on torch 2.13.0,
`should_ban_recomputation` of `_functorch/partitioners.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

from ..torch_private import OpOverload
from ..torch_private.inductor import CustomGraphPass, config

__all__ = ["keep_sums", "passes_added", "sums_kept"]

Pass = Callable[[Graph], None]


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


_REDUCTIONS = frozenset(
    "sum mean var var_mean std std_mean amax amin prod any all linalg_vector_norm".split()
)


def keep_sums(graph: Graph) -> None:
    """Have the reductions of a joint graph computed once. Changes no value."""
    for node in graph.nodes:
        if _reduces(node):
            node.meta.setdefault("recompute", CheckpointPolicy.MUST_SAVE)  # checkpoints have theirs


def _reduces(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._opname in _REDUCTIONS


def sums_kept() -> AbstractContextManager[None]:
    """Compile with `keep_sums`, after the user's own passes over joint graphs."""
    return passes_added("joint_custom_post_pass", keep_sums)
