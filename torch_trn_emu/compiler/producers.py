"""What rounds its own result as an operand of a product: activations and norms, and finding them.

A row of PRODUCERS is a function of torch and the operator of csrc/aten/producers.cpp that rounds
its result in the same pass. A graph holds what the decompositions make of the function; so the
function is traced with them too, and the trace is looked for in the graph. To add a producer, add a
row. Checked on torch 2.13.0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

from ..settings import DEVICE_TYPE
from ..torch_private import FakeTensorMode, tree_leaves
from .apply_precision import register_shapes
from .decompositions import decompositions

__all__ = ["PRODUCERS", "Match", "Producer", "match_of"]

aten, trn = torch.ops.aten, torch.ops.trn

# --- shapes ---------------------------------------------------------------------------------------


def _operand_shapes(*, statistics: int) -> Callable[..., tuple[Tensor | None, ...]]:
    def made(x: Tensor, *_: Any, keep: bool = True, **__: Any) -> tuple[Tensor | None, ...]:
        y = x.new_empty(x.shape)
        rows = (x.new_empty((*x.shape[:-1], 1), dtype=torch.float32) for _ in range(statistics))
        return y.to(torch.bfloat16), y if keep else None, *rows

    return made


for _name, _statistics in (("gelu", 0), ("silu", 0), ("rms_norm", 1), ("layer_norm", 2)):
    register_shapes(f"{_name}_operand")(_operand_shapes(statistics=_statistics))


# --- rows -----------------------------------------------------------------------------------------


def _layer_norm(x: Tensor, *parameters: Tensor, eps: float) -> Any:
    weight, bias = (*parameters, None, None)[:2]
    return aten.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


def _rms_norm(x: Tensor, *parameters: Tensor, eps: float) -> Any:
    return aten._fused_rms_norm(x, x.shape[-1:], *(parameters or (None,)), eps)


def _written_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Any:
    """As language models write it out: rounded before the weight, and after it."""
    wide = x.to(torch.float32)
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (wide * rstd).to(x.dtype), rstd


def _gated(activation: Callable[..., Tensor], x: Tensor, gate: Tensor, eps: float) -> Any:
    return activation(x) * gate


def _alone(activation: Callable[..., Tensor], x: Tensor, eps: float) -> Any:
    return activation(x)


@dataclass(frozen=True, eq=False)
class Producer:
    """What a row matches, and what takes its place.

    function  of x, the tensors beside it and eps; gives y, then what the operator gives after y
    beside    what each of them is: a `gate` like x, or a `column` for each element of x's last axis
    """

    function: Callable[..., Any]
    operator: Any
    beside: tuple[str, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)


_TANH = {"approximate": "tanh"}
_gelu_tanh = partial(F.gelu, approximate="tanh")
_gelu_op, _silu_op = trn.gelu_operand.default, trn.silu_operand.default
_layer_norm_op, _rms_norm_op = trn.layer_norm_operand.default, trn.rms_norm_operand.default

PRODUCERS = (
    Producer(partial(_alone, F.gelu), _gelu_op),
    Producer(partial(_gated, F.gelu), _gelu_op, ("gate",)),
    Producer(partial(_alone, _gelu_tanh), _gelu_op, (), _TANH),
    Producer(partial(_gated, _gelu_tanh), _gelu_op, ("gate",), _TANH),
    Producer(partial(_alone, F.silu), _silu_op),
    Producer(partial(_gated, F.silu), _silu_op, ("gate",)),
    Producer(_layer_norm, _layer_norm_op, ("column", "column")),
    Producer(_layer_norm, _layer_norm_op, ("column",)),
    Producer(_layer_norm, _layer_norm_op),
    Producer(_rms_norm, _rms_norm_op, ("column",)),
    Producer(_rms_norm, _rms_norm_op),
    Producer(_written_rms_norm, _rms_norm_op, ("column",), {"round_before_weight": True}),
)  # fmt: skip

# --- finding --------------------------------------------------------------------------------------

EPS = 135 / 1024  # stands for any float in a trace; exact in every dtype
COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)
Bound = dict[Any, Any]  # what nodes of a trace stand for in the graph


@cache
def _trace(row: Producer, rank: int, dtype: torch.dtype) -> Graph:
    """The row's function of an x of that rank, as the decompositions leave it."""
    with FakeTensorMode():
        x = torch.empty((2,) * (rank - 1) + (64,), dtype=dtype, device=DEVICE_TYPE)
        beside = [x if kind == "gate" else x.new_empty(64) for kind in row.beside]
        given = [x, *(torch.empty_like(t) for t in beside)]
        function = partial(row.function, eps=EPS)
        decomposed = make_fx(function, decomposition_table=decompositions())(*given)
        return make_fx(functionalize(decomposed))(*given).graph


def _unify(pattern: Any, found: Any, bound: Bound) -> Bound | None:
    """`bound` and what makes the pattern equal to what was found, or None."""
    if isinstance(pattern, Node):
        if pattern in bound:
            return bound if bound[pattern] is found else None
        return _unify_nodes(pattern, found, bound) if isinstance(found, Node) else None
    if pattern == EPS:
        return {**bound, EPS: found} if isinstance(found, (int, float)) else None
    if isinstance(pattern, (list, tuple)):
        same = isinstance(found, (list, tuple)) and len(found) == len(pattern)
        return _unify_all(pattern, found, bound) if same else None
    return bound if type(pattern) is type(found) and pattern == found else None


def _unify_nodes(pattern: Node, found: Node, bound: Bound) -> Bound | None:
    bound = {**bound, pattern: found}
    if pattern.op == "placeholder":
        return bound
    if pattern.target != found.target or pattern.kwargs != found.kwargs:
        return None
    if len(pattern.args) != len(found.args):
        return None
    orders = [found.args]
    if found.target in COMMUTATIVE:
        orders.append(found.args[::-1])
    made = (_unify_all(pattern.args, order, bound) for order in orders)
    return next((m for m in made if m is not None), None)


def _unify_all(patterns: Any, found: Any, bound: Bound | None) -> Bound | None:
    for one, other in zip(patterns, found, strict=True):
        bound = None if bound is None else _unify(one, other, bound)
    return bound


@dataclass(frozen=True)
class Match:
    """A producer in a graph."""

    row: Producer
    inputs: tuple[Node, ...]  # x and what is beside it
    results: tuple[Node, ...]  # y, then statistics
    inner: tuple[Node, ...]  # all that the operator computes, in the order of the graph
    eps: float | None


def match_of(node: Node) -> Match | None:
    """The producer whose result is this node."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor) or value.dim() == 0:
        return None
    found = (_match_row(row, node, value) for row in PRODUCERS)
    return next((m for m in found if m is not None), None)


def _match_row(row: Producer, node: Node, value: Tensor) -> Match | None:
    trace = _trace(row, value.dim(), value.dtype)
    results = tree_leaves(trace.output_node().args)
    bound = _unify(results[0], node, {})
    if bound is None or any(p not in bound for p in trace.nodes if p.op == "placeholder"):
        return None
    inputs = tuple(bound[p] for p in trace.nodes if p.op == "placeholder")
    inner = tuple(bound[p] for p in trace.nodes if p.op == "call_function" and p in bound)
    given = tuple(bound[p] for p in results)
    fits = _fits(row, inputs, value) and all(
        set(n.users) <= set(inner) for n in inner if n not in given
    )
    return Match(row, inputs, given, inner, bound.get(EPS)) if fits else None


def _fits(row: Producer, inputs: tuple[Node, ...], result: Tensor) -> bool:
    x, *beside = (node.meta["val"] for node in inputs)
    if not _alike(x, result):
        return False
    return all(
        _alike(t, x) if kind == "gate" else _is_column(t, x)
        for kind, t in zip(row.beside, beside, strict=True)
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    sizes = zip(a.shape, b.shape, strict=False)
    return (a.dtype, a.dim()) == (b.dtype, b.dim()) and all(
        statically_known_true(n == m) for n, m in sizes
    )


def _is_column(t: Tensor, x: Tensor) -> bool:
    fits = t.dim() == 1 and statically_known_true(t.shape[0] == x.shape[-1])
    return fits and t.dtype in (x.dtype, torch.float32)  # float32 under autocast
