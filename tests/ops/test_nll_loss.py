"""Losses of classes and their gradients: classes, images, weights, rows that do not count."""

import numpy as np
import pytest
import torch

from torch_trn_emu.calls import Target
from torch_trn_emu.counters import fold
from torch_trn_emu.ops import OPS
from torch_trn_emu.timing import price

from .calls import CHIP, GENERATOR, call_of, lowered, random, run

aten = torch.ops.aten
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def _case(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.log_softmax(random(*shape), 1)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=GENERATOR)
    target.reshape(-1)[::3] = 2  # the class that some calls ignore
    return x, target, random(shape[1]).abs()


@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("reduction", [0, 1, 2], ids=["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(300, 5), (1, 3), (2, 4, 9, 21)], ids=str)
def test_loss_and_gradient(
    shape: tuple[int, ...], weighted: bool, reduction: int, ignored: int
) -> None:
    x, target, weight = _case(shape)
    spatial = "2d" if len(shape) == 4 else ""
    forward = getattr(aten, f"nll_loss{spatial}_forward").default
    rest = (target, weight if weighted else None, reduction, ignored)
    loss, total = forward(x, *rest)
    feeds = {"x": x, "target": target, "weight": weight}
    got = run(lowered(call_of(forward, x, *rest)), feeds)
    np.testing.assert_allclose(got["out"].reshape(loss.shape), loss, **CLOSE)
    if reduction:
        np.testing.assert_allclose(got["total_weight"][0], total, **CLOSE)
    back = getattr(aten, f"nll_loss{spatial}_backward").default
    g = random(*loss.shape)
    call = call_of(back, g, x, *rest, total)
    got = run(lowered(call), feeds | {"g": g, "total_weight": total})
    np.testing.assert_allclose(got["dx"].reshape(shape), back(g, x, *rest, total), **CLOSE)


def test_bytes_of_a_language_model() -> None:
    """One element of each row is read; the gradient is written once, and one element again."""
    rows, classes = 512, 2000
    x = random(rows, classes)
    target = torch.zeros(rows, dtype=torch.int64)
    one = torch.ones(())
    forward = call_of(aten.nll_loss_forward.default, x, target, None, 1, -100)
    back = call_of(aten.nll_loss_backward.default, one, x, target, None, 1, -100, one)
    runs = [fold(price(OPS[c.name].lower(c, Target(CHIP, 1))[0], CHIP)) for c in (forward, back)]
    assert runs[0]["hbm_read_bytes"] == 2 * rows * 4  # classes and elements
    assert runs[1]["hbm_write_bytes"] == rows * classes * 4 + rows * 4
