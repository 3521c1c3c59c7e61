"""A graph has eager's formats: which operand of a product is a weight is one decision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_trn_emu

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


class Experts(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(2, 64, 32))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:  # [2, 8, 64]
        if self.how == "batched":
            return torch.bmm(x, self.w)
        if self.how == "einsum":
            return torch.einsum("eth,ehi->eti", x, self.w)
        chosen = self.w.mT[torch.arange(2, device=x.device)]
        return torch.matmul(chosen, x.mT).mT


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


MODULES = {
    "linear": Layer,
    "batched experts": lambda: Experts("batched"),
    "experts by einsum": lambda: Experts("einsum"),
    "chosen experts first": lambda: Experts("chosen"),
}


def step(run, module: nn.Module, x: Tensor, broadcast: bool) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    out = run(leaf)
    gradient = torch.ones((), device="trn").expand_as(out) if broadcast else torch.cos(out.detach())
    return [out.detach(), *torch.autograd.grad(out, (leaf, *module.parameters()), gradient)]


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("policy", ["mxfp8", "mxfp4"])
@pytest.mark.parametrize("name", MODULES)
def test_formats_are_those_of_eager(name, policy, broadcast):
    module = MODULES[name]().to("trn")
    x = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1)).trn()
    with torch_trn_emu.precision(policy):
        compiled = torch.compile(module, backend="trn", options={"strict": True})
        wanted = step(module, module, x, broadcast)
        got = step(compiled, module, x, broadcast)
    for mine, plain in zip(got, wanted, strict=True):
        assert torch.allclose(mine, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
