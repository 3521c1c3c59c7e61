"""A function compiled by trn and by another backend in one process: neither changes the other."""

import pytest
import torch
from comparing import TORCHS_OWN

pytestmark = TORCHS_OWN


def through_a_view(x):
    x.t()[0].fill_(7)
    flat = x.view(-1)[::3]
    flat.mul_(2)
    return flat.clone(), x.sum(0)


def twice(x):
    before = x.clone()
    x.add_(1)
    between = x * 1
    x.mul_(before)
    return between - x, before


def ran(f, backend, place):
    """Results and the written input of two calls, and gradients through a product."""
    x = torch.arange(16.0).view(4, 4).to(place)
    compiled = f if backend == "eager" else torch.compile(f, backend=backend)
    found = [t.clone() for _ in range(2) for t in (*compiled(x), x)]
    w = torch.linspace(-1, 1, 16).view(4, 4).to(place).requires_grad_()

    def loss(w):
        return sum(t.square().sum() for t in f(w * 2))

    made = loss if backend == "eager" else torch.compile(loss, backend=backend)
    made(w).backward()
    return [t.detach().cpu() for t in (*found, w.grad)]


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(1, id="trn first"),
        pytest.param(-1, id="trn last", marks=pytest.mark.conformance),
    ],
)
def test_functions_that_write_their_input(order):
    runs = [("trn", "trn"), ("aot_eager", "trn"), ("aot_eager", "cpu")]
    for f in (through_a_view, twice):
        torch._dynamo.reset()
        expected = ran(f, "eager", "cpu")
        for backend, place in [*runs, *[("inductor", "cpu")] * (f is twice)][::order]:
            got = ran(f, backend, place)
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
