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


# Of the batch and of heads, which two cores do not share evenly.
UNEVEN = [(1, 3), (1, 5), (3, 5), (3, 1), (5, 1)]
PLACES = [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0)]  # of batch, heads and tokens in memory


def _placed(order: tuple[int, ...], batch: int, heads: int, length: int) -> torch.Tensor:
    sizes = (batch, heads, length)
    memory = random(*(sizes[d] for d in order), 16)
    return memory.permute(*(order.index(d) for d in range(3)), 3)


@pytest.mark.parametrize("keys", [48, 640])
@pytest.mark.parametrize(("batch", "heads"), UNEVEN)
def test_a_core_with_fewer_heads_stores_no_others(batch: int, heads: int, keys: int) -> None:
    for order in PLACES:
        _check(*(_placed(order, batch, heads, n) for n in (7, keys, keys)))


@pytest.mark.parametrize(("batch", "heads"), [(1, 3), (3, 5), (3, 1)])
def test_gradients_of_a_core_with_fewer_heads(batch: int, heads: int) -> None:
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    for order in PLACES:
        q, k, v, g = (_placed(order, batch, heads, 24) for _ in range(4))
        out, lse = FORWARD(q, k, v)
        name = "_scaled_dot_product_flash_attention_for_cpu_backward"
        cores, pairs = computed(name, backward, g, q, k, v, out, lse, 0.0, False)
        assert cores == 2
        for got, want in pairs:
            torch.testing.assert_close(got.reshape(want.shape), want, rtol=1e-4, atol=1e-5)
