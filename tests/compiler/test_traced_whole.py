"""Operators that torch spells out in Python: in graphs they are what they are in eager mode."""

from collections.abc import Callable

import pytest
import torch
from comparing import TORCHS_OWN, leaf
from torch.nn import functional as F

pytestmark = TORCHS_OWN
TARGETS = torch.tensor([0, 2, 1, 4])

FUNCTIONS = {
    "softshrink": lambda x: F.softshrink(x, 0.4),
    "hardshrink": lambda x: F.hardshrink(x, 0.4),
    "multi_margin_loss": lambda x: F.multi_margin_loss(x, TARGETS.to("trn"), reduction="none"),
    "dropout of nothing": lambda x: F.dropout(x * 2, 0.4, training=False),
    "dropout of all": lambda x: F.dropout(x, 1.0),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 1),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x[None], (3, 1)),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x[None, None], (2, 1, 2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_eager(name: str) -> None:
    x = leaf(4, 3, 7) if "pool" in name else leaf(4, 7)
    compiled = torch.compile(FUNCTIONS[name], backend="trn", options={"strict": True})

    def made(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        y = function(x)
        (g,) = torch.autograd.grad(y.square().sum(), x)
        return y.detach(), g

    for got, expected in zip(made(compiled), made(FUNCTIONS[name]), strict=True):
        assert torch.equal(got, expected)


def test_dropout_of_nothing_is_its_operand() -> None:
    """What is written into the result is written into the operand."""
    x = torch.ones(4, 7, device="trn")
    torch.compile(lambda x: F.dropout(x, 0.4, training=False).mul_(2), backend="trn")(x)
    assert torch.equal(x, torch.full_like(x, 2))
