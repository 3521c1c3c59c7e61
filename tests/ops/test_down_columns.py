"""What works along rows, along other dimensions: turned first, and down columns, on all cores."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from torch_trn_emu.calls import Target
from torch_trn_emu.isa import Program
from torch_trn_emu.kernels import columns
from torch_trn_emu.ops import row_by_row

from .on_cores import computed

aten = torch.ops.aten
NAMES = ["argmax", "argmin", "max", "min", "cummax", "cummin", "cumsum", "cumprod", "logcumsumexp"]
PLACED = ("max", "min")
SHAPES = [
    (9, 40),
    (33, 300),
    (130, 3, 5),
    (300, 7, 9),
    (2, 5, 700),
    (3, 70, 11),
    (5, 1, 6),
    (300, 3, 2),
]


@pytest.fixture(params=["down", "turned"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def chosen(ways: Sequence[tuple[Program, ...]], target: Target) -> tuple[Program, ...]:
        return ways[0] if request.param == "down" else ways[-1]

    monkeypatch.setattr(row_by_row, "faster", chosen)
    return str(request.param)


def _overload(name: str) -> Any:
    packet = getattr(aten, name)
    return packet.dim if name in PLACED else packet.default


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("together", [2048, 40])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values(
    name: str, shape: tuple[int, ...], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "TOGETHER", together)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    x = x.round(decimals=1) if name[:3] in ("cum", "arg", "max", "min") else 30 * x  # some equal
    x = 1 + 0.1 * x if name == "cumprod" else x
    for dim in range(len(shape)):
        cores, pairs = computed(name, _overload(name), x, dim)
        assert cores == 2
        for got, want in pairs:
            torch.testing.assert_close(got.reshape(want.shape), want, rtol=2e-5, atol=2e-4)
