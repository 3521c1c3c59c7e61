"""Activation functions that take numbers, and their gradients, give torch's values."""

from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu.ops import OPS
from torch_trn_emu.ops.activations import ACTIVATIONS

from .calls import call_of, lowered, random, run

aten = torch.ops.aten
X, G, W = random(40, 9), random(40, 9), random(40, 9)
P = torch.linspace(0.01, 0.99, 360).reshape(40, 9)
ODD = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.5, -2.0])
# fmt: off
CASES: list[tuple[Any, ...]] = [
    (aten.elu.default, X), (aten.elu.default, X, 1.67, 1.05, 1), (aten.elu.default, X, 0.7, 2, 0.5),
    (aten.elu_backward.default, G, 0.7, 2, 0.5, False, X),
    (aten.elu_backward.default, G, 0.7, 2, 0.5, True, aten.elu.default(X, 0.7, 2, 0.5)),
    (aten.celu.default, X, 0.6),
    (aten.leaky_relu.default, X), (aten.leaky_relu.default, X, 0.3),
    (aten.leaky_relu.default, X, 2),
    (aten.leaky_relu_backward.default, G, X, 0.3, False),
    (aten._prelu_kernel.default, X, W),
    (aten.hardtanh.default, X), (aten.hardtanh.default, X, -0.25, 0.5),
    (aten.hardtanh_backward.default, G, X, -0.25, 0.5),
    (aten.threshold.default, X, 0.2, -3.0), (aten.threshold_backward.default, G, X, 0.2),
    (aten.softplus.default, X), (aten.softplus.default, 9 * X, 2.5, 20),
    (aten.softplus_backward.default, G, X, 2.5, 20),
    (aten.softshrink.default, X, 0.3), (aten.softshrink_backward.default, G, X, 0.3),
    (aten.hardshrink.default, X, 0.3), (aten.hardshrink_backward.default, G, X, 0.3),
    (aten.mish_backward.default, G, X),
    (aten.logit.default, P), (aten.logit.default, P, 0.1),
    (aten.logit_backward.default, G, P), (aten.logit_backward.default, G, P, 0.1),
    (aten.nan_to_num.default, ODD), (aten.nan_to_num.default, ODD, 1.0, 2.0, -3.0),
]
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]} {[a for a in c[1:] if a is True]}")
def test_values(case: tuple[Any, ...]) -> None:
    """Each step rounds once: a few units of numbers up to 100."""
    op, *arguments = case
    expected = op(*arguments)
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    feeds = {f"in{k}": t for k, t in enumerate(tensors)}
    got = run(lowered(call_of(op, *arguments)), feeds)["out"].reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=4e-6)


def test_every_reader_has_a_case() -> None:
    assert {call_of(*case).name for case in CASES} == set(ACTIVATIONS)
    assert all(OPS[name].status == "modelled" for name in ACTIVATIONS)
