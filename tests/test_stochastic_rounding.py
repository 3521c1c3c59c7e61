"""NEURON_RT_STOCHASTIC_ROUNDING_EN: 16-bit results round stochastically, reproducibly."""

import pytest
import torch
from torch import Tensor, nn

import torch_trn_emu
from torch_trn_emu import _C


@pytest.fixture(autouse=True)
def stochastic():
    _C.set_stochastic_rounding(True, seed=7)
    yield
    _C.set_stochastic_rounding(False, seed=0)


def again() -> None:
    _C.restart_rounding(seed=7)


def test_small_increments_survive_on_average():
    # The vendor's example: 1024 + 0.5, 2048 times, in float16.
    x = torch.full((512,), 1024.0, dtype=torch.float16, device="trn")
    for _ in range(2048):
        x = x + 0.5
    assert abs(x.float().mean().item() - 2048) < 5 * 0.5 * 2048**0.5 / 512**0.5 * 2
    _C.set_stochastic_rounding(False, seed=0)
    stuck = torch.full((4,), 1024.0, dtype=torch.float16, device="trn")
    assert torch.equal(stuck + 0.5, stuck)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "op",
    [
        lambda x: x * 1.1,
        lambda x: torch.sigmoid(x),
        lambda x: x.clone().mul_(1.1),
        lambda x: torch.softmax(x, -1),
        torch_trn_emu.precision("bf16")(lambda x: x @ x.t()),
        lambda x: torch._foreach_mul([x, x], 1.1)[1],
        lambda x: nn.functional.layer_norm(x, x.shape[-1:]),
        lambda x: x.float().mul(1.1).to(x.dtype),
    ],
)
def test_results_are_one_of_the_two_neighbours_and_reproducible(op, dtype):
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype).trn()
    again()
    first = op(x)
    again()
    assert torch.equal(op(x), first)
    _C.set_stochastic_rounding(False, seed=0)
    nearest = op(x)
    step = 2.0 ** -(7 if dtype is torch.bfloat16 else 10)
    gap = (first.float() - nearest.float()).abs()
    tiny = 2.0**-24
    assert first.dtype is dtype
    assert (gap <= nearest.float().abs() * step * 1.01 + tiny).all()
    assert not torch.equal(first, nearest)


def test_copies_and_views_are_exact():
    x = torch.randn(64, 64).bfloat16().trn()
    assert torch.equal(x.clone(), x)
    assert torch.equal(x.t().contiguous(), x.t())
    assert torch.equal(x[:, ::2].cpu(), x.cpu()[:, ::2])


def test_an_optimizer_in_bfloat16_moves_parameters_by_less_than_a_unit_in_the_last_place():
    def moved(fused: bool) -> Tensor:
        p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16, device="trn"))
        p.grad = torch.ones_like(p)
        torch.optim.SGD([p], lr=1e-3, fused=fused).step()
        return p.detach().float().mean()

    assert abs(moved(False).item() - (1 - 1e-3)) < 3e-4


def test_a_different_seed_gives_other_bits():
    x = torch.randn(64, 64).bfloat16().trn()
    again()
    first = x * 1.1
    _C.restart_rounding(seed=8)
    assert not torch.equal(x * 1.1, first)
