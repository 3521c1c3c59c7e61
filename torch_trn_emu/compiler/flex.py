"""FlexAttention on trn: torch's own products, score function and softmax, in one launch.

Calls are priced as attention times the share of blocks that the mask keeps, in compiled graphs too:
there the operators themselves compute the values, and the share is that of the mask with which the
graph was compiled. Checked on torch 2.13.0.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .. import _C
from ..calls import Call, Target, TensorArg
from ..precision import POLICIES
from ..pricing import Price, price_call, remember, scaled
from ..settings import DEVICE_TYPE
from ..torch_private import (
    DispatchKey,
    DispatchKeySet,
    ExcludeDispatchKeyGuard,
    flex_operators,
    unset_fake_temporarily,
)
from .calls import plain
from .graph_launches import uncounted
from .graph_price import target_of_process

__all__ = [
    "Mark",
    "autocast",
    "backward",
    "forward",
    "is_flex",
    "mark_of",
    "marked_price",
    "open_flex_attention",
    "run_on_meta",
    "share_of_blocks",
]

_FORWARD = "aten::_scaled_dot_product_flash_attention_for_cpu"
_ROW_KEYS = 1 << 61  # apart from those of compiled and of captured graphs
_MASK, _MASK_OF_BACKWARD = 4, 9  # places of arguments
_numbers = count()
_AUTOCAST: Any = DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]


def share_of_blocks(block_mask: tuple[Any, ...], query: Tensor, key: Tensor) -> float:
    """How much of the scores the blocks of a mask cover, 0 to 1.

    block_mask  BlockMask.as_tuple(): counts of partial and full blocks are its items 2 and 4.
    """
    partial, full, *_, block_rows, block_columns, _mask = block_mask[2], block_mask[4], *block_mask
    rows = -(-query.shape[-2] // int(block_rows))
    columns = -(-key.shape[-2] // int(block_columns))
    given = [counts[..., :rows] for counts in (partial, full) if counts is not None]
    if any(counts.device.type == "meta" for counts in given):
        return 1.0  # they have no values
    total = sum(int(counts.clamp(max=columns).sum()) for counts in given)
    blocks = max(1, int(given[0].numel()) * columns)
    return float(min(1.0, total / blocks))


def _call(tensors: tuple[TensorArg, ...], policy: str, backward: bool) -> Call:
    """Attention without a mask, which costs what all blocks cost."""
    q, k, v = tensors
    out = TensorArg(q.torch_dtype, (*q.shape[:-1], v.shape[-1]), q.strides)
    sums = TensorArg("float32", q.shape[:-1], q.shape[:-1])
    if backward:
        given = (out, q, k, v, out, sums, 0.0, False)
        return Call(f"{_FORWARD}_backward", given, (q, k, v), policy)
    return Call(_FORWARD, (q, k, v, 0.0, False), (out, sums), policy)


def _price(whole: Call, name: str, share: float, target: Target) -> Price:
    return scaled(price_call(whole, target), f"trn::{name}", share, target.chip)


@lru_cache(maxsize=4096)
def _row(
    name: str,
    device: int,
    tensors: tuple[TensorArg, ...],
    policy: str,
    share: float,
    target: Target,
) -> Any:
    """The ledger's row of calls of one signature."""
    q, k, v = tensors
    price = _price(_call(tensors, policy, name.endswith("backward")), name, share, target)
    return _C.add_graph_row(
        device=device,
        name=price.op,
        signature=f"({list(q.shape)}, {list(k.shape)}, {list(v.shape)}, {share:.3f} of the blocks)",
        key=_ROW_KEYS + next(_numbers),
        device_ns=round(price.seconds * 1e9),
        dispatch_ns=-1,
        price_row=remember(price),
        blocks=False,
    )


def _launched(
    name: str, query: Tensor, key: Tensor, value: Tensor, block_mask: Any, run: Callable[[], Any]
) -> Any:
    """What `run` gives, counted as one launch instead of those of its operators."""
    policy = POLICIES[_C.current_policy()]
    tensors = tuple(map(plain, (query, key, value)))
    with uncounted():
        made = run()
        share = round(share_of_blocks(block_mask, query, key), 3)
    device = query.device.index or 0
    row = _row(name, device, tensors, policy, share, target_of_process())
    _C.launch_graph(device, row, 1)
    return made


def is_flex(operator: Any) -> bool:
    """Forward or backward."""
    return getattr(operator, "_name", "") in ("flex_attention", "flex_attention_backward")


def run_on_meta(
    operator: Any, args: Any, policy: str, target: Target, twin: Callable[[Tensor], Any]
) -> tuple[Any, Hashable, Price]:
    """Results of a call in an estimate; what tells the launch apart, and its price.

    twin  what has the values of a tensor, or None
    """
    query, key, value = args[:3]
    backward = operator._name.endswith("backward")
    mask = args[_MASK_OF_BACKWARD if backward else _MASK]
    known = tuple(part if (seen := _seen(part, twin)) is None else seen for part in mask)
    share = round(share_of_blocks(known, query, key), 3)
    call = _call(tuple(map(plain, args[:3])), policy, backward)
    price = _price(call, operator._name, share, target)
    if backward:
        grads = tuple(torch.empty_like(t) for t in args[:3])
        return (*grads, (None,) * len(args[12])), (call, share), price
    sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
    out = torch.empty_like(query[..., :1].expand(*query.shape[:-1], value.shape[-1]))
    return (out, sums, torch.empty_like(sums)), (call, share), price


def _seen(part: Any, twin: Callable[[Tensor], Any]) -> Any:
    return twin(part) if isinstance(part, Tensor) else part


def forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
    """Attention on trn, in one launch."""
    run = partial(flex_operators().sdpa_dense, query, key, value, *rest)
    return _launched("flex_attention", query, key, value, rest[_MASK - 3], run)


def backward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
    """Its gradients, likewise."""
    run = partial(flex_operators().sdpa_dense_backward, query, key, value, *rest)
    return _launched("flex_attention_backward", query, key, value, rest[_MASK_OF_BACKWARD - 3], run)


def autocast(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
    """Operands in the dtype of autocast, as on CUDA."""
    dtype = torch.get_autocast_dtype(DEVICE_TYPE)
    cast = [t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t
            for t in (query, key, value)]  # fmt: skip
    keys = DispatchKeySet(_AUTOCAST)
    with ExcludeDispatchKeyGuard(keys):
        return flex_operators().flex_attention(*cast, *rest)


# A call in a graph: its number there, the share of its blocks, and its query, key and value.
Mark = tuple[int, float, tuple[TensorArg, ...]]
_MARK = "trn_flex"  # key in what AOTAutograd carries to the nodes made of a call, backward too


def open_flex_attention(graph: Graph) -> None:
    """Put the operators of FlexAttention into a graph of Dynamo in its place.

    Inductor's own code for it is for GPUs, and on CPUs without gradients.
    """
    nodes = graph.find_nodes(op="call_function", target=torch.ops.higher_order.flex_attention)
    for number, node in enumerate(nodes):
        mark = _mark(number, node)
        if mark is not None:
            node.meta["custom"] = (node.meta.get("custom") or {}) | {_MARK: mark}
        node.target = _opened


def _mark(number: int, node: Node) -> Mark | None:
    """What prices the call; None if sizes are symbolic."""
    operands: list[Any] = [n.meta.get("example_value") for n in node.args[:3]]  # type: ignore[union-attr]
    if not all(isinstance(t, Tensor) and all(type(s) is int for s in t.shape) for t in operands):
        return None
    query, key = operands[:2]
    given: tuple[Any, ...] = node.args[_MASK]  # type: ignore[assignment]
    known = tuple(_value(part) if isinstance(part, Node) else part for part in given)
    share = 1.0
    if isinstance(known[2], Tensor):
        with uncounted(), unset_fake_temporarily():
            share = round(share_of_blocks(known, query, key), 3)
    return number, share, tuple(map(plain, operands))


def _value(node: Node) -> Any:
    """The tensor with which Dynamo traces; None for what the graph computes itself."""
    argument = node.meta.get("grapharg")
    return None if argument is None else argument.example


def mark_of(node: Node) -> Mark | None:
    """The call of FlexAttention that a node computes a part of."""
    found: Mark | None = (node.meta.get("custom") or {}).get(_MARK)
    return found


def marked_price(mark: Mark, policy: str, backward: bool, target: Target) -> tuple[Call, Price]:
    """Attention without the mask, and what the call costs with it."""
    _number, share, tensors = mark
    whole = _call(tensors, policy, backward)
    name = "flex_attention_backward" if backward else "flex_attention"
    return whole, _price(whole, name, share, target)


def _opened(*arguments: Any, **named: Any) -> Any:
    return flex_operators().sdpa_dense(*arguments, **named)
