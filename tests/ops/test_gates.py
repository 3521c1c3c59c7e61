"""Gates and their gradients, result by result."""

import numpy as np
import pytest
import torch

from .calls import call_of, lowered, random, run

aten = torch.ops.aten


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("shape", [(4, 6, 8), (2, 2, 2), (300, 2, 34)], ids=str)
def test_glu(shape: tuple[int, ...], dim: int) -> None:
    x = random(*shape)
    a, b = (half.contiguous() for half in x.chunk(2, dim))
    expected = aten.glu.default(x, dim)
    got = run(lowered(call_of(aten.glu.default, x, dim)), {"in0": a, "in1": b})["out"]
    np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=2e-6, atol=1e-6)
    g = random(*expected.shape)
    call = call_of(aten.glu_backward.default, g, x, dim)
    made = run(lowered(call), {"in0": g, "in1": a, "in2": b})
    halves = aten.glu_backward.default(g, x, dim).chunk(2, dim)
    for name, half in zip(("out", "out1"), halves, strict=True):
        np.testing.assert_allclose(made[name].reshape(half.shape), half, rtol=2e-6, atol=1e-6)


def test_prelu_backward() -> None:
    g, x, w = random(140, 9), random(140, 9), random(140, 9)
    op = aten._prelu_kernel_backward.default
    made = run(lowered(call_of(op, g, x, w)), {"in0": g, "in1": x, "in2": w})
    for name, expected in zip(("out", "out1"), op(g, x, w), strict=True):
        np.testing.assert_allclose(made[name].reshape(140, 9), expected, rtol=1e-6)
