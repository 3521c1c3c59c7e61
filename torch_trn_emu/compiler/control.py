"""Control flow in graphs: the bodies that may run, and what a run says of those that did.

The host decides what runs next, by a flag that it reads from the core. On its way a flag of
`torch.cond` or `while_loop` passes through `trn::flag`, which notes what it was. Checked on torch
2.13.0.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, library
from torch.fx import GraphModule, Node

from ..torch_private import DispatchKey, tree_leaves
from .graphs import added, copy_of, graphs_of

__all__ = [
    "FLAG",
    "Body",
    "Flag",
    "Flags",
    "bodies_of",
    "flags_read",
    "inlined",
    "put_flags",
    "run_assuming",
]

Flag = tuple[int, bool]  # the place in a graph where it is read, and what it was
Flags = Counter[Flag]

_higher = torch.ops.higher_order
_WHILE = (_higher.while_loop, _higher.while_loop_stack_output)
_EACH = {_higher.scan: 2, _higher.map_impl: 1}  # and which argument is cut into its first indices

# --- flags ----------------------------------------------------------------------------------------

_NOTED: ContextVar[Flags | None] = ContextVar("flags of the graph that runs", default=None)
_library = library.Library("trn", "FRAGMENT")
_library.define("flag(Tensor flag, int place, bool loops) -> Tensor")


def _read(flag: Tensor, place: int, loops: bool) -> Tensor:
    noted = _NOTED.get()
    if noted is not None:
        noted[place, bool(flag)] += 1
    return flag.clone()


def _assume(flag: Tensor, place: int, loops: bool) -> Tensor:
    """A flag without a value: `cond` takes its first branch, a loop makes one pass."""
    noted = _NOTED.get()
    if noted is not None:
        noted[place, not loops or noted[place, True] == noted[place, False]] += 1
    return torch.empty_like(flag)


_library.impl("flag", _read, "CompositeExplicitAutograd")
_library.impl("flag", _assume, "Meta")
FLAG = torch.ops.trn.flag.default


@contextlib.contextmanager
def flags_read() -> Iterator[Flags]:
    """How often each flag was read as true and as false in what runs meanwhile."""
    noted: Flags = Counter()
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def run_assuming(operator: Any, args: Any, kwargs: Any, read: Callable[[Tensor], object]) -> Any:
    """Call an operator of control flow whose flags have no values: `cond` and loops as `_assume`.

    read  is called with each flag
    """
    if operator is _higher.cond:
        flag, true, false, operands = args
        if isinstance(flag, Tensor):
            read(flag)
        return (false if flag is False else true)(*operands)
    if operator in _WHILE:
        test, body, carried, others = args
        read(test(*carried, *others))
        carried = body(*carried, *others)
        read(test(*carried, *others))
        stacked = operator is _higher.while_loop_stack_output
        return tuple(t.unsqueeze(0) for t in carried) if stacked else carried
    run = operator.py_kernels[DispatchKey.CompositeExplicitAutograd]
    return run(*args, **kwargs)


def put_flags(gm: GraphModule) -> None:
    """Let the flags of a graph and its bodies pass through `trn::flag`: those that are no sizes."""
    count = 0
    for part in graphs_of(gm):
        for node in list(part.graph.nodes):
            if node.target is _higher.cond and _is_flag(node.args[0]):
                noted = _noted(part, node, node.args[0], count, loops=False)
                node.args = (noted, *node.args[1:])
                count += 1
            elif node.target in _WHILE:
                test = _module(part, node.args[0])
                output, flag = test.graph.output_node(), _result(test)
                if flag.target is not FLAG:  # two loops may have one test
                    output.replace_input_with(flag, _noted(test, output, flag, count, loops=True))
                    count += 1
        part.recompile()


def _is_flag(value: Any) -> bool:
    return isinstance(value, Node) and isinstance(value.meta["val"], Tensor)


def _noted(gm: GraphModule, reader: Node, flag: Node, place: int, *, loops: bool) -> Node:
    with gm.graph.inserting_before(reader):
        return added(gm.graph, FLAG, flag, place, loops)


# --- bodies ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Body:
    """A graph inside a graph.

    when       it runs as often as these flags are read; () for a loop that no flag ends
    follows    the host reads a flag of the core before it
    ends       the host reads a flag after it
    elements   what the first size of says how often a loop runs; None for other bodies
    """

    name: str
    gm: GraphModule
    when: tuple[Flag, ...] = ()
    follows: bool = False
    ends: bool = False
    elements: Any = None


def bodies_of(gm: GraphModule, node: Node) -> tuple[Body, ...]:
    """The bodies of a node, in the order in which they run; () for one without control flow."""

    def body(argument: int, *when: Flag, **more: Any) -> Body:
        name: Any = node.args[argument]
        return Body(name.target, _module(gm, name), when, **more)

    if node.target is _higher.cond:
        flag: Any = node.args[0]
        place, crosses = flag.args[1], flag.meta["val"].device.type != "cpu"
        return body(1, (place, True), follows=crosses), body(2, (place, False), follows=crosses)
    if node.target in _WHILE:
        place = _result(_module(gm, node.args[0])).args[1]
        return body(0, (place, True), (place, False), ends=True), body(1, (place, True))
    if node.target in _EACH:
        first = tree_leaves(node.args[_EACH[node.target]])[0]
        return (body(0, elements=first.meta["val"]),)
    return ()


def _module(gm: GraphModule, body: Any) -> Any:
    """The graph that an argument of control flow names."""
    return gm.get_submodule(body.target)


def _result(gm: GraphModule) -> Any:
    """The only one of a graph."""
    (made,) = tree_leaves(gm.graph.output_node().args)
    return made


# --- bodies in the place of calls -----------------------------------------------------------------


def inlined(gm: GraphModule, is_true: Callable[[Any], bool]) -> GraphModule:
    """A copy in which bodies stand where they run, if that is known without running.

    They are regions that are compiled once, and branches by a condition of sizes.
    """
    if not any(_known_calls(part) for part in graphs_of(gm)):
        return gm
    made = copy_of(gm)
    for part in graphs_of(made):
        while calls := _known_calls(part):
            for call in calls:
                _inline(part, call, is_true)
    return made


def _known_calls(gm: GraphModule) -> list[Node]:
    find = partial(gm.graph.find_nodes, op="call_function")
    branches = [n for n in find(target=_higher.cond) if not _is_flag(n.args[0])]
    return [*find(target=_higher.invoke_subgraph), *branches]


def _inline(gm: GraphModule, call: Node, is_true: Callable[[Any], bool]) -> None:
    operands: Any = call.args[2:]
    body = call.args[0]
    if call.target is _higher.cond:
        condition, *branches, operands = call.args
        body = branches[
            not is_true(condition.meta["val"] if isinstance(condition, Node) else condition)
        ]
    inner = _module(gm, body)
    inputs = inner.graph.find_nodes(op="placeholder")
    with gm.graph.inserting_before(call):
        results: Any = gm.graph.graph_copy(inner.graph, dict(zip(inputs, operands, strict=True)))
    for user in list(call.users):
        user.replace_all_uses_with(results[user.args[1]])  # of operator.getitem
        gm.graph.erase_node(user)
    gm.graph.erase_node(call)
    for name, child in inner.named_children():
        if not hasattr(gm, name):
            setattr(gm, name, child)
