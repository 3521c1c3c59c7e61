"""Few long rows: each is cut over partitions, and in tiles where those have many elements."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from torch_trn_emu.calls import Target
from torch_trn_emu.isa import Program
from torch_trn_emu.kernels import row_max, scan_few_rows
from torch_trn_emu.ops import max_and_min, row_by_row, sorting

from .on_cores import computed

aten = torch.ops.aten
ARGUMENTS: dict[str, Any] = {"argmax": aten.argmax.default, "argmin": aten.argmin.default,
                             "max": aten.max.dim, "min": aten.min.dim}  # fmt: skip


@pytest.fixture(params=[8192, 64], ids=["whole", "tiles"])
def _wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def last(ways: Sequence[tuple[Program, ...]], target: Target) -> tuple[Program, ...]:
        return ways[-1]

    for module in (sorting, row_max):
        monkeypatch.setattr(module, "WIDE", request.param)
    if request.param < 8192:
        monkeypatch.setattr(row_max, "CHUNK", 8)
        monkeypatch.setattr(max_and_min, "LEAST", 64)
    monkeypatch.setattr(row_by_row, "faster", last)
    monkeypatch.setattr(scan_few_rows, "TOGETHER", request.param // 64 + 1)


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("columns", [300, 1023, 8192, 12_001])
@pytest.mark.parametrize("rows", [1, 2, 6, 46])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_extremes_are_the_first_of_equals(name: str, rows: int, columns: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    _, pairs = computed(name, ARGUMENTS[name], x, 1)
    assert pairs
    for got, want in pairs:
        torch.testing.assert_close(got.reshape(want.shape), want)


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("k", [1, 8, 21])
@pytest.mark.parametrize("columns", [300, 8192, 12_001])
@pytest.mark.parametrize("rows", [2, 50])
def test_topk(rows: int, k: int, columns: int) -> None:
    x = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(1)).float()
    _, pairs = computed("topk", aten.topk.default, x.reshape(rows, columns), k)
    assert len(pairs) == 2
    for got, want in pairs:
        torch.testing.assert_close(got.reshape(want.shape), want)


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("columns", [700, 2048, 8193])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("name", ["cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"])
def test_running_results(name: str, rows: int, columns: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    x = {"cumprod": 1 + 0.01 * x, "logcumsumexp": 30 * x}.get(name, x)
    _, pairs = computed(name, getattr(aten, name).default, x, 1)
    assert pairs
    for got, want in pairs:
        torch.testing.assert_close(got.reshape(want.shape), want, rtol=2e-5, atol=1e-3)
