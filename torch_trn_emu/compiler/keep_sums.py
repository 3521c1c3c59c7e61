"""Keeps what a forward graph has reduced for its backward graph, however short its rows are.

AOTAutograd computes again what it takes for free, and a reduction counts as free unless it makes
four values one. On the chip it is a pass over all that it reads. Checked on torch 2.13.0,
`should_ban_recomputation` of `_functorch/partitioners.py`.
"""

from contextlib import AbstractContextManager

from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

from ..torch_private import OpOverload
from .own_passes import passes_added

__all__ = ["keep_sums", "sums_kept"]

_REDUCTIONS = frozenset(
    "sum mean var var_mean std std_mean amax amin prod any all linalg_vector_norm".split()
)


def keep_sums(graph: Graph) -> int:
    """Have the reductions of a joint graph computed once. Returns how many. Changes no value."""
    found = [n for n in graph.nodes if _reduces(n) and "recompute" not in n.meta]  # checkpoints
    for node in found:
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return len(found)


def _reduces(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._opname in _REDUCTIONS


def sums_kept() -> AbstractContextManager[None]:
    """Compile with `keep_sums`, after the user's own passes over joint graphs."""
    return passes_added("joint_custom_post_pass", keep_sums)
