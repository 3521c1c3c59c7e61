"""Distances of values that can be worked out by hand."""

import math

import pytest
import torch

from torch_trn_emu.parity import Distance, distance


def test_figures_of_a_small_error():
    found = distance(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert (found.elements, found.max_abs, found.mean_abs) == (2, 0.5, 0.25)
    assert found.relative == pytest.approx(0.1)
    assert found.sqnr_db == pytest.approx(20.0)
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))


def test_distances_add_up_over_tensors():
    a, b = torch.randn(2, 30)
    c, d = torch.randn(2, 50)
    both = distance((a, c), (b, d))
    joined = distance(a, b) + distance(c, d)
    assert both.max_abs == joined.max_abs
    assert both.relative == pytest.approx(joined.relative)


def test_what_is_equal_has_no_error():
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    found = distance(odd, odd.clone())
    assert (found.max_abs, found.relative, found.sqnr_db) == (0, 0, math.inf)
    assert Distance().relative == 0.0
    assert Distance().cosine == 1.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_number_in_one_place_only_is_infinitely_wrong(wrong):
    found = distance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, wrong]))
    assert found.max_abs == math.inf
    assert found.to_dict()["max_abs"] is None


def test_integers_do_not_count_and_shapes_must_agree():
    assert distance([torch.tensor([1]), 2], [torch.tensor([5]), 3]).elements == 0
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        distance(torch.zeros(3), torch.zeros(4))


def test_complex_and_sparse_tensors_count():
    assert distance(torch.tensor([1j]), torch.tensor([1j + 3])).max_abs == 3
    assert distance(torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()).max_abs == 1
