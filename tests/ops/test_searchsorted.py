"""Places among boundaries are torch's, and draws fall on entries as often as their odds say."""

from math import log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.ops import searchsorted

from .calls import call_of, lowered, random, run

aten = torch.ops.aten


def _found(op: Any, edges: torch.Tensor, numbers: torch.Tensor, **named: Any) -> np.ndarray:
    """Numbers filled up to what lies on all partitions."""
    first = (numbers, edges) if "bucketize" in str(op) else (edges, numbers)
    (program,) = lowered(call_of(op, *first, **named))
    (there,) = (b for b in program.buffers if b.name == "in")
    fed = torch.zeros(there.elements)
    fed[: numbers.numel()] = numbers.reshape(-1)
    got = run((program,), {"in": fed, "boundaries": edges})["out"]
    return got.reshape(-1)[: numbers.numel()].reshape(numbers.shape)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 400), m=st.integers(1, 60), right=st.booleans(), wide=st.sampled_from([8, 999])
)
def test_one_row_of_boundaries(n: int, m: int, right: bool, wide: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searchsorted, "WIDE", wide)
        numbers = random(n).round(decimals=1)  # some are on a boundary
        edges = random(m).round(decimals=1).sort().values
        for op in (aten.bucketize.Tensor, aten.searchsorted.Tensor):
            first = (numbers, edges) if op is aten.bucketize.Tensor else (edges, numbers)
            expected = op(*first, right=right)
            np.testing.assert_array_equal(_found(op, edges, numbers, right=right), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_boundaries_for_each_row(side: str) -> None:
    edges = random(140, 20).round(decimals=1).sort().values
    numbers = random(140, 9).round(decimals=1)
    expected = aten.searchsorted.Tensor(edges, numbers, side=side)
    got = _found(aten.searchsorted.Tensor, edges, numbers, side=side)
    np.testing.assert_array_equal(got, expected)


ODDS = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3])
ROWS = 4000


def _often(places: np.ndarray) -> None:
    """Hoeffding: a share of n draws lies within sqrt(log(2 / d) / 2n) of its odds, but for 1 / d"""
    share = np.bincount(places.astype(int).reshape(-1), minlength=len(ODDS)) / places.size
    assert share[1] == 0
    assert np.abs(share - ODDS.numpy()).max() <= sqrt(log(2 / 1e-9) / (2 * places.size))


def test_a_draw_from_each_row() -> None:
    odds = (3 * ODDS).expand(ROWS, 5).contiguous()
    programs = lowered(call_of(aten.multinomial.default, odds, 1))
    _often(run(programs, {"in0": odds}, [{}, {"in": "out"}])["index"])


def test_draws_without_replacement_differ() -> None:
    odds = ODDS.expand(ROWS, 5).contiguous()
    programs = lowered(call_of(aten.multinomial.default, odds, 4))
    index = run(programs, {"in0": odds}, [{}, {"in": "out"}])["index"].reshape(ROWS, 4)
    np.testing.assert_array_equal(np.sort(index, axis=1), np.tile([0, 2, 3, 4], (ROWS, 1)))
    _often(index[:, 0])  # the first has the odds of one draw


def test_draws_with_replacement() -> None:
    odds = (3 * ODDS).expand(130, 5).contiguous()
    sums, drawn, found = lowered(call_of(aten.multinomial.default, odds, 40, True))
    up_to = run((sums,), {"in": odds})["out"].reshape(130, 5)
    total = torch.from_numpy(up_to[:, -1:].copy())
    numbers = run((drawn,), {"in0": total})["out"]
    feeds = {"in": torch.from_numpy(numbers), "boundaries": torch.from_numpy(up_to)}
    _often(run((found,), feeds)["out"])
