"""Matrices and lists of places made on the core are torch's."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.ops import factories

from .calls import call_of, lowered, run

aten = torch.ops.aten


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 200), m=st.integers(1, 200), wide=st.sampled_from([8192, 50]))
def test_eye(n: int, m: int, wide: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factories, "WIDE", wide)
        got = run(lowered(call_of(aten.eye.m, n, m)), {})["out"]
        np.testing.assert_array_equal(got, torch.eye(n, m))


@pytest.mark.parametrize("name", ["tril_indices", "triu_indices"])
@pytest.mark.parametrize("shape", [(5, 5, 0), (40, 17, -3), (17, 40, 4), (3, 1, 0)], ids=str)
def test_triangle_indices(name: str, shape: tuple[int, int, int]) -> None:
    op: Any = getattr(aten, name).default
    expected = op(*shape)
    ones, cut, places, turned = lowered(call_of(op, *shape))
    links = [{}, {"in": "out"}, {"mask": "out"}, {b.name: "out" for b in turned.buffers
                                                  if b.name.startswith("in")}]  # fmt: skip
    got = run((ones, cut, places), {}, links[:3])["out"]
    pairs = got.reshape(-1)[: 2 * expected.shape[1]].reshape(-1, 2)  # one more is past the end
    np.testing.assert_array_equal(pairs.T, expected)
    assert turned.name.startswith(("copy", "transpose"))


@pytest.mark.parametrize("arguments", [(1.0, 9.5, 0.5), (5.0, -20.0, -3.0)])
def test_range(arguments: tuple[float, ...]) -> None:
    op: Any = aten.range.step
    got = run(lowered(call_of(op, *arguments)), {})["out"]
    np.testing.assert_allclose(got, op(*arguments), rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(repeats=st.lists(st.integers(0, 9), min_size=1, max_size=400).filter(any))
def test_repeats(repeats: list[int]) -> None:
    counts = torch.tensor(repeats)
    expected = aten.repeat_interleave.Tensor(counts)
    programs = lowered(call_of(aten.repeat_interleave.Tensor, counts))
    got = run(programs, {"in": counts}, [{}, {"index": "out"}, {"in": "out"}])["out"]
    np.testing.assert_array_equal(got[:-1], expected)
