"""The one operator that a graph consists of, before Inductor's table took it apart.

What a decomposition makes is noted in its nodes, so that a graph of one operator can be priced as
the program that the operator is in eager mode. Checked on torch 2.13.0.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import count
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Node
from torch.fx.traceback import annotate, get_current_meta

from ..calls import Call, TensorArg
from ..ops import OPS
from ..torch_private import OpOverload, tree_leaves
from .calls import by_position, plain
from .nodes import users_of
from .region import Region

__all__ = ["call_of_graph", "note_of", "noted"]

# In a node's `custom` metadata, with the operator's name: a backward node gets those of the forward
# node as well, and copies of them.
NOTE = "trn_call of "
_numbers = count()
# What autograd makes of an operator that writes statistics, and how many results that has itself.
_EAGER = MappingProxyType(
    {"aten::_native_batch_norm_legit_functional": ("aten::_native_batch_norm_legit", 3)}
)


@dataclass(slots=True)
class _Note:
    """One run of a decomposition, by number; the call is known when it is done."""

    number: int
    call: Call | None = None


def noted(op: Any, decomposition: Callable[..., Any]) -> Callable[..., Any]:
    """The decomposition of an operator, whose nodes say which call they are parts of.

    Of one decomposition inside of another the outer one counts. Sizes that are symbols say nothing.
    """
    if not isinstance(op, OpOverload):
        return decomposition

    @wraps(decomposition)
    def run(*args: Any, **kwargs: Any) -> Any:
        if any(str(key).startswith(NOTE) for key in get_current_meta().get("custom", ())):
            return decomposition(*args, **kwargs)
        note = _Note(next(_numbers))
        with annotate({f"{NOTE}{op}": note}):
            results = decomposition(*args, **kwargs)
        note.call = _call(op, args, kwargs, results)
        return results

    return run


def _call(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], results: Any) -> Call | None:
    leaves = tree_leaves((args, kwargs, results))
    sizes = [s for t in leaves if isinstance(t, torch.Tensor) for s in t.shape]
    if any(isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool)) for x in (*leaves, *sizes)):
        return None
    values = by_position(op._schema, args, kwargs)
    made = results if isinstance(results, (tuple, list)) else (results,)
    return Call(op.name(), plain(values), plain(made))


def call_of_graph(regions: Sequence[Region]) -> Call | None:
    """The operator that all nodes of a graph are, or are parts of; None where there are several.

    Its results have to be all that the graph leaves: a forward graph may keep more for the backward
    one.
    """
    held = [
        (node, call)
        for region in regions
        for node, call in zip(region.nodes, region.calls, strict=True)
        if not _is_free(call)
    ]
    made = dict(held)
    held = [(n, c) for n, c in held if not _writes_back(n, made)]
    if not held:
        return None
    call = _whole(held)
    if call is None or _left(made) - Counter(map(_size, call.outputs)):
        return None
    return replace(_eager(call), policy=held[0][1].policy)


def _whole(held: Sequence[tuple[Node, Call]]) -> Call | None:
    """The operator that nodes are parts of."""
    notes = [note_of(node) for node, _ in held]
    if len(held) == 1:
        return notes[0].call if notes[0] else held[0][1]
    known = [note for note in notes if note]
    if len(known) < len(held):
        return None
    parts = list(zip((node for node, _ in held), (call for _, call in held), known, strict=True))
    last = max(known, key=lambda note: note.number)
    own = [node for node, _, note in parts if note.number == last.number]
    apart = [(call, note) for _, call, note in parts if note.number != last.number]
    return last.call if all(_is_shared(call, note, own) for call, note in apart) else None


def _is_shared(step: Call, of: _Note, gradient: Sequence[Node]) -> bool:
    """Whether the nodes of a gradient hold a step as well as the forward operator that it is of.

    Of equal nodes torch keeps the first. What has the size of the forward operator's largest result
    may be an argument of the gradient, that has to be made before; what is smaller is a statistic.
    """
    is_gradient = all(of.number in {note.number for note in _notes(g)} for g in gradient)
    if of.call is None or not is_gradient:
        return False
    largest = max((t.numel for t in of.call.outputs), default=0)
    return all(t.numel < largest for t in step.outputs)


def _eager(call: Call) -> Call:
    op, results = _EAGER.get(call.op, (call.op, len(call.results)))
    return replace(call, op=op, results=call.results[:results])


def _is_free(call: Call) -> bool:
    row = OPS.get(call.name)
    return row is not None and row.status == "free"


def note_of(node: Node) -> _Note | None:
    """The note of the operator that torch says a node is made of."""
    note: _Note | None = (node.meta.get("custom") or {}).get(
        f"{NOTE}{node.meta.get('original_aten')}"
    )
    return note


def _notes(node: Node) -> list[_Note]:
    """Also those of the forward node that a backward node belongs to."""
    return [n for key, n in (node.meta.get("custom") or {}).items() if str(key).startswith(NOTE)]


def _writes_back(node: Node, made: Mapping[Node, Call]) -> bool:
    """Whether it copies to the graph's input what the graph has made for it, or what it is."""
    if node.target is not torch.ops.aten.copy_.default:
        return False
    to, source = node.args[:2]
    return to.op == "placeholder" and source in (to, *made)  # type: ignore[union-attr]


def _left(made: Mapping[Node, Call]) -> Counter[tuple[str, int]]:
    """What the graph gives to others, by dtype and size."""

    def is_left(value: Node) -> bool:
        return any(u not in made or _writes_back(u, made) for u in users_of(value))

    left: list[TensorArg] = []
    for node, call in made.items():
        if _writes_back(node, made):
            continue
        if isinstance(node.meta.get("val"), torch.Tensor):
            left += call.outputs if is_left(node) else ()
        else:  # `getitem`, by the number of the result
            left += [call.results[u.args[1]] for u in node.users if is_left(u)]  # type: ignore[index]
    return Counter(map(_size, left))


def _size(t: TensorArg) -> tuple[str, int]:
    return t.torch_dtype, prod(t.shape)
