"""A small model, and one profile of three training steps that several tests read."""

import pytest
import torch
from torch import Tensor, nn

import torch_trn_emu


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).tanh()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 32), Mix(), nn.Linear(32, 32))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class Run:
    """A model with its optimizer on trn, and a step of training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Model().to("trn")
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.x, self.y = torch.randn(64, 32, device="trn"), torch.zeros(64, 4, device="trn")

    def step(self) -> None:
        loss = nn.functional.mse_loss(self.model(self.x), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture(scope="package")
def prof() -> torch_trn_emu.profile:
    """Three steps after a first one."""
    run = Run()
    run.step()
    with torch_trn_emu.profile(with_stack=True) as prof:
        for _ in range(3):
            run.step()
    return prof
