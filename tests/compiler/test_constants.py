"""Weights of a graph for inference lie as the array takes them; other tensors as they are."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_trn_emu

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


def _us(function: object, *operands: Tensor, dtype: str = "bf16") -> float:
    torch._dynamo.reset()
    with torch_trn_emu.precision(dtype):
        return torch_trn_emu.estimate(function, *operands, chip="trn1", mode="compile").device_us  # type: ignore[arg-type]


def _linear() -> tuple[nn.Linear, Tensor, Tensor]:
    with torch.device("meta"):
        return nn.Linear(768, 3072, bias=False), torch.empty(128, 768), torch.empty(3072, 768)


def test_a_parameter_is_laid_out_in_inference() -> None:
    module, x, w = _linear()
    with torch.no_grad():
        assert _us(module, x) < 0.85 * _us(F.linear, x, w)


def test_gradients_keep_it_as_it_is() -> None:
    module, x, w = _linear()
    given = _us(F.linear, x, w.requires_grad_())
    assert _us(module, x) == pytest.approx(given, rel=0.01)


def test_the_device_prices_what_the_estimate_does() -> None:
    module, x, _ = _linear()
    with torch.no_grad(), torch_trn_emu.precision("bf16"):
        torch._dynamo.reset()
        there = module.to_empty(device="trn")
        compiled = torch.compile(there, backend="trn")
        given = torch.zeros(x.shape, device="trn")
        compiled(given)
        torch.trn.synchronize()
        before = torch.trn.counters()["core_busy_time"]
        compiled(given)
        torch.trn.synchronize()
        took = (torch.trn.counters()["core_busy_time"] - before) * 1e6
        chip = torch_trn_emu.settings.settings().chip.name
        torch._dynamo.reset()
        told = torch_trn_emu.estimate(_linear()[0], x, chip=chip, mode="compile").device_us
    assert took == pytest.approx(told, rel=0.01)
