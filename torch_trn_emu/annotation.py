"""Marks the nodes of a graph that Dynamo is tracing with the precision of their module or block.

Dynamo calls `opened` and `closed` while it traces, with constants; they leave nothing in the graph.
The mark travels in `node.meta["custom"]`, which AOTAutograd carries to the backward graph. Checked
on torch 2.13.0.
"""

from typing import Any

from torch.fx import GraphModule, Node

__all__ = ["ANNOTATION", "closed", "opened"]

ANNOTATION = "trn_precision"
_HOOKS = "torch_trn_emu.precision"  # the module of the hooks
_BLOCKS = "_trn_precision_blocks"  # of Dynamo's graph: a trace given up takes its marks along


def opened(policy: str) -> int:
    """A block with `policy` begins here."""
    output = _output()
    blocks = output.__dict__.setdefault(_BLOCKS, [])
    blocks.append((policy, next(reversed(output.current_tracer.graph.nodes), None)))
    return 0


def closed() -> int:
    """The innermost block ends here: mark its nodes, unless an inner block has."""
    output = _output()
    policy, last_before = output.__dict__[_BLOCKS].pop()
    for node in reversed(output.current_tracer.graph.nodes):
        if node is last_before:
            break
        _mark(node, policy, output.nn_modules)
    return 0


def _mark(node: Node, policy: str, modules: Any) -> None:
    node.meta["custom"] = {ANNOTATION: policy} | (node.meta.get("custom") or {})
    body = modules.get(node.target) if node.op == "get_attr" else None
    if isinstance(body, GraphModule):
        for inner in body.graph.nodes:
            _mark(inner, policy, dict(body.named_children()))


def _output() -> Any:
    """What Dynamo makes of the frame that it traces.

    A hook that is traced by itself marks nothing: it has to run.
    """
    from .torch_private.dynamo import SkipFrame, graph_being_traced

    output = graph_being_traced()
    if output.root_tx.f_globals.get("__name__") == _HOOKS:
        raise SkipFrame("a hook that sets the precision of a module")
    return output


for _function in (opened, closed):  # as torch._dynamo.assume_constant_result does, without Dynamo
    _function.__dict__["_dynamo_marked_constant"] = True
