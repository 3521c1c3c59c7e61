"""Attention under the names of CUDA's fused kernels: the flash and the memory-efficient one.

Both are made of scaled_dot_product_attention, which follows the precision policy and brings the
gradient. torch.nn.attention.varlen comes here. Checked on torch 2.13.0.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..errors import Unsupported
from ..torch_private import ForceDispatchKeyGuard, dispatch_key, excluded_keys, included_keys

__all__ = ["register_fused_attention"]

FROM_TOP_LEFT, FROM_BOTTOM_RIGHT = 1, 2  # custom_mask_type of the memory-efficient kernel
DEVICE_KEYS = ("PrivateUse1", "AutogradPrivateUse1")

_LIBRARY = torch.library.Library("aten", "IMPL")  # kernels go when it does


def _refuse(op: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise Unsupported(
                f"aten::{op}: {name} is not supported on trn. "
                "Use torch.nn.functional.scaled_dot_product_attention with a mask."
            )


def _visible(
    rows: int, columns: int, causal: int | None, left: int | None, right: int | None, device: Any
) -> Tensor | None:
    """What each query sees, [rows, columns] bool; None: everything."""
    if causal is None and left is None and right is None:
        return None
    shift = 0 if causal == FROM_TOP_LEFT else columns - rows
    ahead = (
        torch.arange(columns, device=device)
        - torch.arange(rows, device=device).unsqueeze(1)
        - shift
    )
    seen = torch.ones((rows, columns), dtype=torch.bool, device=device)
    if causal is not None:
        seen = seen & (ahead <= 0)
    if left is not None:
        seen = seen & (ahead >= -left)
    return seen if right is None else seen & (ahead <= right)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
) -> Tensor:
    """[batch, rows, heads, width] of each, and of the result."""
    heads, key_heads = query.shape[-2], key.shape[-2]
    if heads != key_heads and (key_heads == 0 or heads % key_heads != 0):
        raise ValueError(
            f"attention: {heads} heads of the query cannot share {key_heads} heads of the key. "
            "The first must be a multiple of the second."
        )
    out = scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=heads != key_heads,
    )
    if mask is not None and mask.dtype == torch.bool:
        out = out.masked_fill(~mask.any(-1)[:, None], 0)  # a query that sees nothing
    return out.transpose(1, 2)


@torch.no_grad()
def _logsumexp(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[batch, heads, rows] float32."""
    groups = query.shape[2] // key.shape[2]
    keys = key.transpose(1, 2).repeat_interleave(groups, 1)
    scores = (query.transpose(1, 2) @ keys.mT).float() * scale
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.logsumexp(-1)


def _sequences(
    x: Tensor, ends_q: Tensor, ends_k: Tensor, key: Tensor, value: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The sequences that are packed along the first dimension, each as a batch of one."""
    q, k = ends_q.tolist(), ends_k.tolist()
    for i in range(len(q) - 1):
        keys = slice(k[i], k[i + 1])
        yield x[None, q[i] : q[i + 1]], key[None, keys], value[None, keys]


def _window(size: int | None) -> int | None:
    return None if size is None or size < 0 else size


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: tuple[Tensor | None, Tensor | None],
    dropout: float,
    causal: int | None,
    scale: float | None,
    window: tuple[int | None, int | None],
) -> tuple[Tensor, Tensor]:
    """The result, and logsumexp [batch, heads, rows], or [heads, rows] of packed sequences."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale

    def one(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mask = _visible(q.shape[1], k.shape[1], causal, *window, q.device)
        return _attend(q, k, v, mask, dropout, scale), _logsumexp(q, k, mask, scale)

    if ends[0] is None or ends[1] is None:
        return one(query, key, value)
    parts = [one(*each) for each in _sequences(query, ends[0], ends[1], key, value)]
    return torch.cat([out[0] for out, _ in parts]), torch.cat([sums[0] for _, sums in parts], -1)


def _flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _refuse(
        "_flash_attention_forward",
        seqused_k=seqused_k,
        alibi_slopes=alibi_slopes,
        block_table=block_table,
    )
    causal = FROM_BOTTOM_RIGHT if is_causal else None
    window = (_window(window_size_left), _window(window_size_right))
    ends = (cum_seq_q, cum_seq_k)
    out, sums = _flash(query, key, value, ends, dropout_p, causal, scale, window)
    state = torch.zeros(2, dtype=torch.int64, device=query.device)
    return out, sums, state, state.new_empty(()), query.new_empty(0)


def _flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, ...]:
    """Computes the forward pass again."""
    _refuse("_flash_attention_backward", dropout_p=dropout_p or None)
    causal = FROM_BOTTOM_RIGHT if is_causal else None
    window = (_window(window_size_left), _window(window_size_right))
    with torch.enable_grad(), _with_autograd():
        q, k, v = (x.detach().requires_grad_() for x in (query, key, value))
        again, _ = _flash(q, k, v, (cum_seq_q, cum_seq_k), 0.0, causal, scale, window)
        return torch.autograd.grad(again, (q, k, v), grad_out)


def _with_autograd() -> Any:
    """A custom operator's backward pass runs below autograd."""
    included = included_keys()
    excluded = excluded_keys()
    for key in ("AutogradFunctionality", "ADInplaceOrView"):
        excluded = excluded.remove(dispatch_key(key))
    return ForceDispatchKeyGuard(included, excluded)


def _efficient_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    dropout_p: float,
    custom_mask_type: int,
    compute_log_sumexp: bool = False,
    *,
    scale: float | None = None,
    seqlen_k: Tensor | None = None,
    window_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    _refuse("_efficient_attention_forward", seqlen_k=seqlen_k, window_size=window_size or None)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    causal = custom_mask_type or None
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        _refuse("_efficient_attention_forward", bias=bias)
        ends = (cu_seqlens_q, cu_seqlens_k)
        packed = (query[0], key[0], value[0])
        out, sums = (x[None] for x in _flash(*packed, ends, dropout_p, causal, scale, (None, None)))
    else:
        seen = _visible(query.shape[1], key.shape[1], causal, None, None, query.device)
        mask = seen if bias is None else bias
        if bias is not None and seen is not None:
            mask = bias.masked_fill(~seen, -math.inf)
        out = _attend(query, key, value, mask, dropout_p, scale)
        sums = _logsumexp(query, key, mask, scale)
    if not compute_log_sumexp:
        sums = sums[..., :0]
    state = torch.zeros((), dtype=torch.int64, device=query.device)
    return (
        out,
        sums,
        state,
        state.clone(),
        max_seqlen_q or query.shape[1],
        max_seqlen_k or key.shape[1],
    )


def _with_tensors(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Refuses None where the operator's schema asks for a tensor, in torch's words."""
    schema = getattr(torch.ops.aten, kernel.__name__).default._schema
    places = [
        (i, argument.name)
        for i, argument in enumerate(schema.arguments)
        if str(argument.type) == "Tensor"
    ]

    @functools.wraps(kernel)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        for i, name in places:
            if (arguments[i] if i < len(arguments) else keywords.get(name)) is None:
                raise RuntimeError(
                    "Expected a proper Tensor but got None (or an undefined Tensor in C++) "
                    f"for argument #{i} '{name}'"
                )
        return kernel(*arguments, **keywords)

    return checked


def register_fused_attention() -> None:
    for kernel in (
        _flash_attention_forward,
        _flash_attention_backward,
        _efficient_attention_forward,
    ):
        for key in DEVICE_KEYS:
            _LIBRARY.impl(kernel.__name__, _with_tensors(kernel), key)
