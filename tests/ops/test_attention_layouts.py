"""Attention of operands that lie in memory as projections leave them: torch's values."""

from itertools import product

import pytest
import torch

from .calls import random
from .on_cores import computed

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
ORDERS = ("heads", "tokens")  # what comes first in memory


def _heads(order: str, heads: int, length: int, dim: int = 16) -> torch.Tensor:
    if order == "heads":
        return random(1, heads, length, dim)
    return random(1, length, heads, dim).transpose(1, 2)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    name = "_scaled_dot_product_flash_attention_for_cpu"
    cores, pairs = computed(name, FORWARD, q, k, v)
    assert cores == 2
    for got, want in pairs:
        torch.testing.assert_close(got.reshape(want.shape), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [384, 513, 640, 1100])
def test_keys_and_values_in_orders_of_their_own(keys: int) -> None:
    for orders in product(ORDERS, repeat=3):
        q, k, v = (_heads(o, 2, n) for o, n in zip(orders, (5, keys, keys), strict=True))
        _check(q, k, v)
