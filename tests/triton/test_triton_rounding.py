"""Stochastic casts give the bits of the C++ kernels."""

import pytest
import torch
from oracles import DEVICE, assert_same_bits, bits, draw

from torch_trn_emu.triton.rounding import ROUNDED, stochastic_round

TARGETS = tuple(ROUNDED)


@pytest.mark.parametrize("dtype", TARGETS, ids=str)
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (2**63 - 1, 2**33 + 5), (-3, 1)])
def test_the_bits_of_the_host(seed, offset, dtype):
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e38, 1e-42])
    x = torch.cat([special, draw(3, 171, spread=20).flatten()])
    got = stochastic_round(x.to(DEVICE), dtype, seed, offset)
    assert_same_bits(got, torch.ops.trn.stochastic_round(x, dtype=dtype, seed=seed, offset=offset))


@pytest.mark.parametrize("dtype", TARGETS, ids=str)
def test_the_mean_stays(dtype):
    x = torch.full((1 << 16,), 1.1, device=DEVICE)
    y = stochastic_round(x, dtype, 11).double()
    step = torch.unique(y).diff().item()
    assert abs(y.mean().item() - x[0].double().item()) < 5 * step / 256


def test_strided_elements_are_numbered_as_contiguous_ones():
    x = draw(40, 30).to(DEVICE)
    got = stochastic_round(x.t(), torch.bfloat16, 3)
    assert torch.equal(bits(got), bits(stochastic_round(x.t().contiguous(), torch.bfloat16, 3)))
    assert stochastic_round(x[:0], torch.float16, 3).shape == (0, 30)


def test_other_formats_are_refused():
    with pytest.raises(TypeError, match="takes float32"):
        stochastic_round(torch.ones(3, device=DEVICE, dtype=torch.float64), torch.bfloat16, 0)
    with pytest.raises(TypeError, match="takes float32"):
        stochastic_round(torch.ones(3, device=DEVICE), torch.float64, 0)
    with pytest.raises(TypeError, match="takes float32"):
        torch.ops.trn.stochastic_round(torch.ones(3), dtype=torch.float64, seed=0)
