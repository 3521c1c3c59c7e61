"""DTensor on trn: random operators of sharded tensors, attention and products.

torch's strategies know the kernels of CUDA and no operators of ours. They learn of this device when
DTensor is imported. Checked on torch 2.13.0.
"""

from types import ModuleType
from typing import Any

import torch

from ..importing import when_imported
from ..torch_private import DTENSOR_RANDOM, RING_ATTENTION

__all__ = ["install_dtensor"]

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def install_dtensor() -> None:
    """Act on DTensor's modules once a program imports them."""
    when_imported(DTENSOR_RANDOM, _track_random_state)
    when_imported("torch.distributed.tensor", _shard_attention)
    when_imported("torch.distributed.tensor", _shard_products)
    when_imported(RING_ATTENTION, _ring_attention)


def _track_random_state(module: Any) -> None:
    from .dtensor_random import track_random_state  # imports what DTensor has imported

    track_random_state(module)


def _shard_attention(_: ModuleType) -> None:
    """Batches and heads are independent; a mask may tell them apart."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def forward(query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):  # type: ignore[no-untyped-def]
        places = [Replicate()] if attn_mask is not None else [Replicate(), Shard(0), Shard(1)]
        return [([p] * 2, [p] * 3 + [None] * 2) for p in places]

    def backward(*args: Any, attn_mask: Any = None, scale: Any = None) -> Any:
        places = [Replicate()] if attn_mask is not None else [Replicate(), Shard(0), Shard(1)]
        return [([p] * 3, [p] * 6 + [None] * 2) for p in places]

    register_sharding(_FORWARD.default)(forward)
    register_sharding(_BACKWARD.default)(backward)


def _shard_products(_: ModuleType) -> None:
    """The product of a traced gradient is sharded as `mm` and `bmm` are."""
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def product(a: Any, b: Any, matmul_class: int, weight: int) -> Any:
        batched = len(a.shape) - 2
        rows, columns, whole, sums = Shard(batched), Shard(batched + 1), Replicate(), Partial()
        found = [
            (sums, columns, rows),
            (rows, rows, whole),
            (columns, whole, columns),
            (sums, sums, whole),
            (sums, whole, sums),
            (whole, whole, whole),
        ]
        found += [(Shard(0),) * 3] * batched
        return [([out], [left, right, None, None]) for out, left, right in found]

    register_sharding(torch.ops.trn.product_of_role.default)(product)


def _ring_attention(module: Any) -> None:
    """Under context parallelism, torch's own ring around this device's kernel."""
    sequence = 2  # the dimension that is sharded, as torch has it

    def wrapped(results: Any, like: Any) -> Any:
        from torch.distributed.tensor import DTensor

        mesh, places = like.device_mesh, like.placements
        return tuple(DTensor.from_local(x, mesh, places, run_check=False) for x in results)

    def local(tensor: Any) -> Any:
        return tensor._local_tensor

    def forward(op: Any, args: Any, kwargs: Any) -> Any:
        query, key, value, *rest = args
        dropout_p = rest[0] if rest else 0.0
        is_causal = rest[1] if len(rest) > 1 else False
        results = module._templated_ring_attention(
            query.device_mesh.get_group(),
            sequence,
            _FORWARD,
            query=local(query),
            key=local(key),
            value=local(value),
            is_causal=is_causal,
            dropout_p=dropout_p,
            scale=kwargs.get("scale"),
        )
        return wrapped(results[:2], query)

    def backward(op: Any, args: Any, kwargs: Any) -> Any:
        grad_out, query, key, value, out, logsumexp, dropout_p, is_causal = args
        results = module._templated_ring_attention_backward(
            query.device_mesh.get_group(),
            sequence,
            _BACKWARD.default,
            grad_out=local(grad_out),
            grad_out_name="grad_out",
            query=local(query),
            key=local(key),
            value=local(value),
            out=local(out),
            logsumexp=local(logsumexp),
            is_causal=is_causal,
            dropout_p=dropout_p,
            scale=kwargs.get("scale"),
        )
        return wrapped(results[:3], query)

    module.custom_ops.update({_FORWARD.default: forward, _BACKWARD.default: backward})
