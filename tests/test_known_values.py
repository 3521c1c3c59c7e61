"""Estimates of functions that read values: those that no argument decides are known."""

import pytest
import torch

from torch_trn_emu import estimate
from torch_trn_emu.errors import Unimplemented
from torch_trn_emu.estimation.known_values import MOST


def x() -> torch.Tensor:
    return torch.empty(4, 6, device="meta")


def positions(t: torch.Tensor) -> torch.Tensor:
    """A value that depends on the size of an argument alone."""
    return torch.arange(t.shape[-1], device=t.device) + 1


def in_place(t: torch.Tensor) -> float:
    made = torch.zeros(3, device=t.device)
    made[1:].add_(2)
    return float(made.sum())


READ = {
    "a factory": (lambda t: int(positions(t)[-1]), 6),
    "a condition": (lambda t: bool((positions(t).diff() == 1).all()), True),
    "a view that is written": (in_place, 4.0),
    "out of place": (lambda t: float(torch.full((2, 2), 1.5, device=t.device).mean()), 1.5),
    "like an argument": (lambda t: float(torch.ones_like(t).sum()), 24.0),
    "from the host": (lambda t: int(torch.tensor([3, 4]).to(t.device).max()), 4),
    "a list": (lambda t: positions(t)[:3].tolist(), [1, 2, 3]),
    "sizes": (lambda t: tuple((positions(t) > 4).nonzero().shape), (2, 1)),
}


@pytest.mark.parametrize("name", READ)
def test_what_no_argument_decides_is_known(name: str) -> None:
    function, value = READ[name]
    found = []
    made = estimate(lambda t: found.append(function(t)), x())
    assert found == [value]
    on_trn = torch.empty(4, 6, device="trn")
    torch.trn.reset_counters()
    assert function(on_trn) == value
    assert made.counters["launch_count"] == torch.trn.counters()["launch_count"]


def mixed(t: torch.Tensor) -> float:
    made = torch.zeros(6, device=t.device)
    view = made[:3]
    made.add_(t[0])
    return float(view.sum())


def test_tensors_of_the_host_are_written_once() -> None:
    kept, got = torch.zeros(3), torch.zeros(6, dtype=torch.int64)

    def step(t: torch.Tensor) -> None:
        kept.add_(1)
        got.copy_(positions(t))

    estimate(step, x())
    assert kept.tolist() == [1, 1, 1]
    assert got.tolist() == [1, 2, 3, 4, 5, 6]


UNKNOWN = {
    "an argument": lambda t: t.sum().item(),
    "made of one": lambda t: bool((positions(t) + t[0] > 0).any()),
    "random": lambda t: torch.rand(3, device=t.device).max().item(),
    "never written": lambda t: torch.empty(3, device=t.device).max().item(),
    "an argument written to it": mixed,
    "brought to the host": lambda t: t.cpu(),
    "as a list": lambda t: t.tolist(),
    "too large": lambda t: torch.ones(MOST + 1, device=t.device).max().item(),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_an_argument_decides_is_refused(name: str) -> None:
    with pytest.raises(Unimplemented, match="reads a value of a tensor"):
        estimate(UNKNOWN[name], x())
