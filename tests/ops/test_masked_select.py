"""What masks choose, and the way back, give exactly torch's elements."""

from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu.ops import masked_select

from .calls import GENERATOR, call_of, lowered, random, run

aten = torch.ops.aten


@pytest.fixture(params=[1024, 3], ids=["whole", "tiles"])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few flags a partition, so that tiles and a ragged end carry on."""
    monkeypatch.setattr(masked_select, "MOST", request.param)


def _mask(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=GENERATOR) > 0.6


CASES = [
    (aten.masked_select.default, random(31, 37), _mask(31, 37)),
    (aten.index.Tensor, random(31, 37, 3), [_mask(31, 37)]),
    (aten.index.Tensor, random(400, 5), [_mask(400)]),
]


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {tuple(case[1].shape)}")
def test_choosing(case: tuple[Any, ...]) -> None:
    op, x, given = case
    expected = op(x, given)
    mask = given[0] if isinstance(given, list) else given
    got = run(lowered(call_of(op, x, given)), {"in": x, "mask": mask})["out"]
    np.testing.assert_array_equal(got[: expected.numel()].reshape(expected.shape), expected)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("shape", [(900,), (31, 37), (6, 5, 41)], ids=str)
def test_nonzero(shape: tuple[int, ...]) -> None:
    x = random(*shape).clamp_min(0)
    expected = aten.nonzero.default(x)
    got = run(lowered(call_of(aten.nonzero.default, x)), {"mask": x})["out"]
    np.testing.assert_array_equal(got[: expected.numel()].reshape(expected.shape), expected)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("trailing", [(), (3,)], ids=str)
def test_spreading(trailing: tuple[int, ...], adds: bool) -> None:
    x, mask = random(31, 37, *trailing), _mask(31, 37)
    source = random(int(mask.sum()), *trailing)
    feeds = {"in": x, "mask": mask, "source": source}
    op = aten.index_put.default
    got = run(lowered(call_of(op, x, [mask], source, adds)), feeds)["out"]
    np.testing.assert_allclose(got.reshape(x.shape), op(x, [mask], source, adds), rtol=1e-6)
    if not trailing and not adds:
        scatter = aten.masked_scatter.default
        got = run(lowered(call_of(scatter, x, mask, source)), feeds)["out"]
        np.testing.assert_array_equal(got.reshape(x.shape), scatter(x, mask, source))


def test_one_value_for_all_is_a_choice() -> None:
    x, mask, one = random(31, 37), _mask(31, 37), torch.tensor(2.5)
    call = call_of(aten.index_put.default, x, [mask], one)
    got = run(lowered(call), {"in0": x, "in1": mask, "in2": one})["out"]
    np.testing.assert_array_equal(got.reshape(x.shape), x.masked_fill(mask, 2.5))


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", [(3,), (1,), (1, 3), (1, 1)], ids=str)
def test_one_entry_for_all_is_a_choice(shape: tuple[int, ...], adds: bool) -> None:
    x, mask, one = random(31, 37, 3), _mask(31, 37), random(*shape)
    call = call_of(aten.index_put.default, x, [mask], one, adds)
    got = run(lowered(call), {"in0": x, "in1": mask, "in2": one})["out"]
    expected = aten.index_put.default(x, [mask], one, adds)
    np.testing.assert_array_equal(got.reshape(x.shape), expected)


@pytest.mark.parametrize("adds", [False, True])
def test_a_value_for_each_entry_repeats_inside(adds: bool) -> None:
    x, mask = random(31, 37, 3), _mask(31, 37)
    each = random(int(mask.sum()), 1)
    call = call_of(aten.index_put.default, x, [mask], each, adds)
    whole = each.expand(-1, 3).contiguous()
    got = run(lowered(call), {"in": x, "mask": mask, "source": whole})["out"]
    expected = aten.index_put.default(x, [mask], each, adds)
    np.testing.assert_allclose(got.reshape(x.shape), expected, rtol=1e-6)
