"""Losses of elements and their gradients, summed, averaged or as they are, give torch's values."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.ops import OPS
from torch_trn_emu.ops.loss_steps import GRADIENTS, LOSSES

from .calls import call_of, lowered, random, run

aten = torch.ops.aten
X, Y, W = random(140, 9), random(140, 9), random(140, 9).abs()
P, T = X.sigmoid(), (Y > 0).float()
G, ONE = random(140, 9), torch.tensor(0.7)
Case = tuple[Any, tuple[torch.Tensor, ...], tuple[Any, ...], tuple[Any, ...]]
# An operator, its tensors, what comes between them and the reduction, and after it.
FORWARD: list[Case] = [
    (aten.mse_loss.default, (X, Y), (), ()),
    (aten.l1_loss.default, (X, Y), (), ()),
    (aten.smooth_l1_loss.default, (X, Y), (), (0.5,)),
    (aten.smooth_l1_loss.default, (X, Y), (), (0.0,)),
    (aten.huber_loss.default, (X, Y), (), (0.7,)),
    (aten.soft_margin_loss.default, (X, Y.sign()), (), ()),
    (aten.binary_cross_entropy.default, (P, T), (None,), ()),
    (aten.binary_cross_entropy.default, (P, T, W), (), ()),
    (aten.binary_cross_entropy_with_logits.default, (X, T), (None, None), ()),
    (aten.binary_cross_entropy_with_logits.default, (X, T, W), (None,), ()),
    (aten.binary_cross_entropy_with_logits.default, (X, T, W, 2 * W), (), ()),
]
BACKWARD: list[Case] = [
    (aten.mse_loss_backward.default, (X, Y), (), ()),
    (aten.smooth_l1_loss_backward.default, (X, Y), (), (0.5,)),
    (aten.smooth_l1_loss_backward.default, (X, Y), (), (0.0,)),
    (aten.huber_loss_backward.default, (X, Y), (), (0.7,)),
    (aten.soft_margin_loss_backward.default, (X, Y.sign()), (), ()),
    (aten.binary_cross_entropy_backward.default, (P, T), (None,), ()),
    (aten.binary_cross_entropy_backward.default, (P, T, W), (), ()),
]


def _machine(op: Any, arguments: tuple[Any, ...]) -> np.ndarray:
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    return run(
        lowered(call_of(op, *arguments)), {f"in{k}": t for k, t in enumerate(tensors)}
    )["out"]  # fmt: skip


@pytest.mark.parametrize("how", [0, 1, 2], ids=["none", "mean", "sum"])
@pytest.mark.parametrize("case", FORWARD, ids=lambda c: f"{c[0]} {len(c[1])}")
def test_values(case: Case, how: int) -> None:
    op, tensors, between, after = case
    arguments = (*tensors, *between, how, *after)
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    expected = op(*wide).numpy()
    got = _machine(op, arguments).reshape(expected.shape)
    n = X.numel() if how else 1  # terms of a float32 sum, of which each has a few roundings
    np.testing.assert_allclose(got, expected, rtol=(n + 16) * 2.0**-24, atol=4e-6)


@pytest.mark.parametrize("how", [0, 1, 2], ids=["none", "mean", "sum"])
@pytest.mark.parametrize("case", BACKWARD, ids=lambda c: f"{c[0]} {len(c[1])}")
def test_gradients(case: Case, how: int) -> None:
    op, tensors, between, after = case
    above = ONE if how else G
    expected = op(above, *tensors, *between, how, *after)
    got = _machine(op, (above, *tensors, *between, how, *after)).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=4e-6, atol=4e-7)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 3000), name=st.sampled_from(["mse_loss", "huber_loss"]))
def test_any_length(n: int, name: str) -> None:
    x, y = random(n), random(n)
    op = getattr(aten, name).default
    got = _machine(op, (x, y, 2))
    expected = op(x.double(), y.double(), 2)
    np.testing.assert_allclose(got[0], expected, rtol=(n + 16) * 2.0**-24)


def test_every_reader_has_a_case() -> None:
    assert {call_of(op, *t, *b, 0, *a).name for op, t, b, a in FORWARD} == set(LOSSES)
    assert {call_of(op, G, *t, *b, 0, *a).name for op, t, b, a in BACKWARD} == set(GRADIENTS)
    assert all(OPS[name].status == "modelled" for name in (*LOSSES, *GRADIENTS))
