"""Running sums, products and extremes along rows, down columns and over one long run."""

from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu.isa import Engine
from torch_trn_emu.kernels import cumulate_runs
from torch_trn_emu.ops import scans
from torch_trn_emu.timing import price

from .calls import CHIP, call_of, lowered, random, run
from .on_cores import computed

aten = torch.ops.aten
LONG = [(3, 2500), (2, 300, 5), (1, 1), (2700,)]


@pytest.fixture(params=[8192, 1000], ids=["whole", "chunks"])
def wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "WIDE", request.param)
    monkeypatch.setattr(scans, "TOGETHER", request.param // 500)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize(("shape", "dim"), [(s, d) for s in LONG for d in range(len(s))], ids=str)
def test_cumsum(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    x = (random(*shape) * 9).to(dtype)
    expected = aten.cumsum.default(x.double(), dim)
    got = run(lowered(call_of(aten.cumsum.default, x, dim)), {"in": x})["out"]
    np.testing.assert_allclose(got.reshape(shape), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", ["cummax", "cummin"])
def test_running_extremes(name: str) -> None:
    x = random(130, 1100).round(decimals=1)  # some are equal: the last counts
    op: Any = getattr(aten, name).default
    values, index = op(x, 1)
    got = run(lowered(call_of(op, x, 1)), {"in": x})
    np.testing.assert_array_equal(got["values"].reshape(x.shape), values)
    np.testing.assert_array_equal(got["index"].reshape(x.shape), index)


def test_cumprod() -> None:
    x = 1 + 0.01 * random(130, 300)
    got = run(lowered(call_of(aten.cumprod.default, x, 1)), {"in": x})["out"]
    np.testing.assert_allclose(got.reshape(x.shape), x.double().cumprod(1), rtol=1e-4)


def test_a_scan_costs_two_cycles_an_element() -> None:
    (program,) = lowered(call_of(aten.cumsum.default, random(128, 4000), 1))
    busy = price(program, CHIP).engine_busy_s(Engine.VECTOR)
    # The constant, the first state and the scan. [isa]
    assert busy * 1.2e9 == pytest.approx(64 + 64 + 2 * 4000)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("shape", [(130, 1100), (3, 1), (2500,)], ids=str)
def test_logcumsumexp(shape: tuple[int, ...]) -> None:
    """Terms that fall far behind the largest so far, and far ahead of it."""
    x = 30 * random(*shape)
    got = run(lowered(call_of(aten.logcumsumexp.default, x, -1)), {"in": x})["out"]
    expected = x.double().logcumsumexp(-1)
    np.testing.assert_allclose(got.reshape(shape), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize(("shape", "dim"), [((130, 40), 1), ((2, 2100), 1), ((9, 300), 0)])
def test_logcumsumexp_of_the_ends_of_the_range(shape: tuple[int, ...], dim: int) -> None:
    """Along rows, few of them and down columns."""
    least = torch.finfo(torch.float32).min
    x = torch.tensor([least, -torch.inf, -least, 0.0]).repeat(-(-shape[1] // 4))[: shape[1]]
    for k in range(4):  # whatever comes first
        whole = x.roll(k).expand(shape) if dim else x.roll(k)[: shape[0], None].expand(shape)
        _, pairs = computed("logcumsumexp", aten.logcumsumexp.default, whole.contiguous(), dim)
        assert pairs
        for got, want in pairs:
            torch.testing.assert_close(got.reshape(want.shape), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize(
    ("outer", "rows", "columns"),
    [(1, 1000, 8), (2, 1001, 3), (1, 128, 17), (3, 513, 40), (1, 5, 2), (1, 2000, 600)],
)
def test_partitions_sum_up_runs_of_rows(
    outer: int, rows: int, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one tile or several, the last of which fills no whole number of partitions."""
    for together in (2048, 4 * min(columns, 512)):
        monkeypatch.setattr(cumulate_runs, "TOGETHER", together)
        x = (10 * random(outer, rows, columns)).round().to(dtype)
        name = str(dtype).removeprefix("torch.").replace("int64", "int32")
        program = cumulate_runs.cumulate_runs(outer, rows, columns, dtype=name)
        got = run((program,), {"in": x})["out"].reshape(x.shape)
        np.testing.assert_array_equal(got, x.double().cumsum(1))
