"""Attention of few queries: heads that share keys are queries of one, wherever they lie."""

from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import torch_trn_emu

from .calls import random
from .on_cores import computed

aten = torch.ops.aten
MASKS: dict[str, tuple[int, ...] | None] = {
    "none": None,
    "of keys": (2, 1, 1, 300),
    "of queries": (2, 1, 3, 300),
    "of heads": (1, 8, 3, 300),
}


def _heads(heads: int, length: int, *, apart: bool) -> torch.Tensor:
    """[batch, heads, length, head_dim]; `apart` as a view of a projection has them."""
    if apart:
        return random(2, length, heads, 20).transpose(1, 2)
    return random(2, heads, length, 20)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("keys", [300, 700])
def test_values(mask: str, apart: bool, keys: int) -> None:
    sizes = MASKS[mask]
    given = None if sizes is None else random(*sizes[:-1], keys)
    q = _heads(8, 3, apart=apart)
    k, v = (_heads(2, keys, apart=apart) for _ in "kv")
    op = partial(aten.scaled_dot_product_attention.default, enable_gqa=True)
    cores, pairs = computed("scaled_dot_product_attention", op, q, k, v, given)
    assert cores
    for got, expected in pairs:
        torch.testing.assert_close(
            torch.as_tensor(got).reshape(expected.shape), expected, rtol=2e-2, atol=2e-2
        )


def _us(queries: int, *, apart: bool, dim: int = 128) -> float:
    def empty(heads: int, length: int) -> torch.Tensor:
        if apart:
            t = torch.empty(2, length, heads, dim, dtype=torch.bfloat16, device="meta")
            return t.transpose(1, 2)
        return torch.empty(2, heads, length, dim, dtype=torch.bfloat16, device="meta")

    call = partial(scaled_dot_product_attention, enable_gqa=True)
    with torch.no_grad():
        made = torch_trn_emu.estimate(call, empty(32, queries), empty(4, 4096), empty(4, 4096))
    assert all(row.status == "modelled" for row in made.ops)
    return made.device_us


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_a_few_queries_take_as_long_as_one(apart: bool, dim: int) -> None:
    times = [_us(n, apart=apart, dim=dim) for n in (1, 2, 3, 8, 16)]
    assert max(times) < 1.1 * times[0]
    assert _us(17, apart=apart, dim=dim) < 2 * times[0]  # four heads together instead of eight
