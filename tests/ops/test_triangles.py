"""Triangles of matrices: torch's elements, and no more loaded than is kept."""

from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu.calls import Target
from torch_trn_emu.counters import fold
from torch_trn_emu.ops import OPS
from torch_trn_emu.pricing import price_call
from torch_trn_emu.timing import price

from .calls import CHIP, TARGET, call_of, lowered, random, run

aten = torch.ops.aten


@pytest.mark.parametrize("diagonal", [0, 3, -150, 400, -400])
@pytest.mark.parametrize("shape", [(300, 290), (2, 3, 5, 7), (130, 1)], ids=str)
@pytest.mark.parametrize("name", ["tril", "triu"])
def test_triangle(name: str, shape: tuple[int, ...], diagonal: int) -> None:
    op: Any = getattr(aten, name).default
    x = random(*shape)
    got = run(lowered(call_of(op, x, diagonal)), {"in": x})["out"]
    np.testing.assert_array_equal(got.reshape(shape), op(x, diagonal))


@pytest.mark.parametrize("diagonal", [0, 2, -1, -100, 100])
@pytest.mark.parametrize("shape", [(2, 150, 7, 9), (301, 3, 3), (30, 90, 70)], ids=str)
@pytest.mark.parametrize("name", ["tril", "triu"])
def test_many_small_matrices(name: str, shape: tuple[int, ...], diagonal: int) -> None:
    """Several to a partition, or a band of their rows at once; what is not kept may be NaN."""
    op: Any = getattr(aten, name).default
    x = random(*shape)
    x[0, ..., 0, 1] = torch.nan
    programs = lowered(call_of(op, x, diagonal))
    got = run(programs, {"in": x})["out"]
    np.testing.assert_array_equal(got.reshape(shape), op(x, diagonal))
    assert programs[0].name.startswith("triangles")


@pytest.mark.parametrize("rows", [3, 16, 64, 65])
def test_many_matrices_take_about_as_long_as_one_of_their_size(rows: int) -> None:
    """Within twelve times the time of as many elements in one matrix."""
    many, one = (
        price_call(call_of(aten.tril.default, torch.empty(shape, device="meta")), TARGET).seconds
        for shape in ((2**22 // rows**2, rows, rows), (2048, 2048))
    )
    assert many < 12 * one


def test_bytes() -> None:
    """Two tiles of 128 rows: the first loads 128 of 256 columns, the second all."""
    call = call_of(aten.tril.default, random(256, 256))
    totals = fold(price(OPS["tril"].lower(call, Target(CHIP, 1))[0], CHIP))
    assert totals["hbm_read_bytes"] == 128 * (128 + 256) * 4
    assert totals["hbm_write_bytes"] == 256 * 256 * 4
