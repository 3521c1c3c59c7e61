"""FlexAttention on trn: torch's own products, score function and softmax, in one launch.

Eager calls are priced as attention times the share of blocks that the mask keeps. A compiled graph
holds the operators themselves, which are fused and priced as any others. Checked on torch 2.13.0.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

from .. import _C
from ..calls import Call, Target, TensorArg
from ..precision import POLICIES
from ..pricing import Price, price_call, remember, scaled
from ..settings import DEVICE_TYPE
from ..torch_private import DispatchKey, DispatchKeySet, ExcludeDispatchKeyGuard, flex_operators
from .graph_price import target_of_process

__all__ = ["autocast", "backward", "forward", "open_flex_attention", "share_of_blocks"]

_FORWARD = "aten::_scaled_dot_product_flash_attention_for_cpu"
_ROW_KEYS = 1 << 61  # apart from those of compiled and of captured graphs
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
    total = sum(int(counts.clamp(max=columns).sum()) for counts in given)
    blocks = max(1, int(given[0].numel()) * columns)
    return float(min(1.0, total / blocks))


def _tensor(t: Tensor) -> TensorArg:
    return TensorArg(str(t.dtype).removeprefix("torch."), tuple(t.shape), tuple(t.stride()))


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
    out = TensorArg(q.torch_dtype, (*q.shape[:-1], v.shape[-1]), q.strides)
    sums = TensorArg("float32", q.shape[:-1], q.shape[:-1])
    if name.endswith("backward"):
        given = (out, q, k, v, out, sums, 0.0, False)
        whole = Call(f"{_FORWARD}_backward", given, (q, k, v), policy)
    else:
        whole = Call(_FORWARD, (q, k, v, 0.0, False), (out, sums), policy)
    price: Price = scaled(price_call(whole, target), f"trn::{name}", share, target.chip)
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
    tensors = tuple(map(_tensor, (query, key, value)))
    previous = _C.pause_ledger(True)
    try:
        made = run()
        share = round(share_of_blocks(block_mask, query, key), 3)
    finally:
        _C.pause_ledger(previous)
    device = query.device.index or 0
    row = _row(name, device, tensors, policy, share, target_of_process())
    _C.launch_graph(device, row, 1)
    return made


def forward(query: Tensor, key: Tensor, value: Tensor, score: Any, mask: Any, *rest: Any) -> Any:
    """Attention on trn, in one launch."""

    def run() -> Any:
        return flex_operators().sdpa_dense(query, key, value, score, mask, *rest)

    return _launched("flex_attention", query, key, value, mask, run)


def backward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
    """Its gradients, likewise."""

    def run() -> Any:
        return flex_operators().sdpa_dense_backward(query, key, value, *rest)

    return _launched("flex_attention_backward", query, key, value, rest[6], run)


def autocast(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
    """Operands in the dtype of autocast, as on CUDA."""
    dtype = torch.get_autocast_dtype(DEVICE_TYPE)
    cast = [t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t
            for t in (query, key, value)]  # fmt: skip
    keys = DispatchKeySet(_AUTOCAST)
    with ExcludeDispatchKeyGuard(keys):
        return flex_operators().flex_attention(*cast, *rest)


def open_flex_attention(graph: Graph) -> int:
    """Put the operators of FlexAttention into a graph of Dynamo in its place. Returns how often.

    Inductor's own code for it is for GPUs, and on CPUs without gradients.
    """
    nodes = graph.find_nodes(op="call_function", target=torch.ops.higher_order.flex_attention)
    for node in nodes:
        node.target = _opened
    return len(nodes)


def _opened(*arguments: Any, **named: Any) -> Any:
    return flex_operators().sdpa_dense(*arguments, **named)
