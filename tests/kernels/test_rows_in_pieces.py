"""Few long rows: partitions share them, evenly or not, and bring their values together on chip."""

from itertools import pairwise
from math import inf

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.ops.calls import random, run
from torch_trn_emu.chip import get_chip
from torch_trn_emu.isa import Program, validate
from torch_trn_emu.kernels.reduce_rows import reduce_rows
from torch_trn_emu.kernels.rows.layout import layout_of
from torch_trn_emu.kernels.rows.values import Input, Output, Values, reduced, step
from torch_trn_emu.ops.normalization import row_op
from torch_trn_emu.timing import price

CHIPS = [get_chip(name) for name in ("trn1", "trn2", "trn3")]
OPS = {
    "rms_norm": lambda x, w, b: F.rms_norm(x, w.shape, w, 1e-5),
    "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5),
    "softmax": lambda x, w, b: torch.softmax(x, -1),
    "log_softmax": lambda x, w, b: torch.log_softmax(x, -1),
}
SHAPES = [(1, 2048), (1, 4099), (2, 3000), (5, 2881), (33, 6007), (64, 8191)]


def _norm(op: str, rows: int, columns: int, chip: str = "trn3") -> Program:
    absent = {"mean", "rstd"}
    return row_op(op, rows, columns, "float32", chip=get_chip(chip), absent=absent)


def _us(op: str, rows: int, columns: int, chip: str) -> float:
    return price(_norm(op, rows, columns, chip), get_chip(chip)).total_s * 1e6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_rows_have_their_values(op: str, shape: tuple[int, int]) -> None:
    x, w, b = random(*shape) * 3, random(shape[1]), random(shape[1])
    program = _norm(op, *shape)
    for chip in CHIPS[1:]:
        validate(_norm(op, *shape, chip.name), chip)
    given = {k: t for k, t in {"x": x, "w": w, "b": b}.items()
             if any(k == buffer.name for buffer in program.buffers)}  # fmt: skip
    got = run((program,), given)["out y"].reshape(shape)
    np.testing.assert_allclose(got, OPS[op](x, w, b), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("columns", [9000, 9001], ids=["even", "uneven"])
@pytest.mark.parametrize("op", ["add", "max", "min", "abs_max", "multiply"])
def test_what_a_row_lacks_changes_no_result(op: str, columns: int) -> None:
    x = random(3, columns) - (5 if op == "max" else 0)
    x = 1 + 0.001 * x if op == "multiply" else x
    x[1] = -inf if op == "max" else x[1]
    program = reduce_rows(3, columns, op=op, chip=CHIPS[2])
    got = run((program,), {"in": x})["out"].reshape(3)
    wide = x.double()
    want = {"add": wide.sum(1), "max": wide.amax(1), "min": wide.amin(1),
            "abs_max": wide.abs().amax(1), "multiply": wide.prod(1)}[op]  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-3)


def test_pieces_are_joined_on_chip() -> None:
    for shape in SHAPES:
        program = _norm("softmax", *shape)
        hbm = {b.name for b in program.buffers if b.memory.value == "hbm"}
        assert hbm == {"x", "out y"}


def test_whole_numbers_are_shared_evenly() -> None:
    """Minus infinity, which changes no maximum, is no whole number."""
    steps = [reduced("top", "x", "max"), step("y", "tensor_scalar", "x", "top", op0="subtract")]
    for dtype, uneven in (("int32", False), ("bfloat16", True)):
        values = Values([Input("x", dtype)], steps, [Output("y", "float32")])
        assert bool(layout_of(1, 8191, 1, values).missing) is uneven


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
def test_neighbours_cost_about_the_same(op: str, chip: str) -> None:
    for rows in (1, 2, 7, 32, 63):
        for columns in (512, 1024, 2048, 4096, 8192):
            times = [_us(op, rows, n, chip) for n in (columns - 1, columns, columns + 1)]
            assert max(times) < 1.2 * min(times), (rows, columns, times)
    for columns in (1024, 4096):
        times = [_us(op, rows, columns, chip) for rows in (1, 2, 3, 4, 8, 16, 32, 64)]
        assert all(a < 1.2 * b for a, b in pairwise(times)), (columns, times)


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_columns_of_up_to_64_inner_elements_have_a_program(op: str) -> None:
    """Blocks of [columns, inner], of which each partition has a piece: chosen by no class."""
    x = random(2048, 64)
    program = row_op(op, 1, 2048, "float32", chip=CHIPS[2], inner=64)
    validate(program, CHIPS[2])
    got = run((program,), {"x": x})["out y"].reshape(x.shape)
    want = torch.softmax(x, 0) if op == "softmax" else torch.log_softmax(x, 0)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    for chip in CHIPS:
        for columns in (2048, 4096, 8192):
            times = [
                price(row_op(op, 1, columns, "float32", chip=chip, inner=n), chip).total_s
                for n in (32, 33, 48, 49, 62, 63, 64)
            ]
            assert all(0.9 * a < b for a, b in pairwise(times)), (chip.name, columns, times)


@pytest.mark.parametrize("shape", [(1, 2_000_003), (3, 700_001)], ids=str)
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_uneven_pieces_are_cut_in_chunks(op: str, shape: tuple[int, int]) -> None:
    x = random(*shape) * 3
    program = _norm(op, *shape)
    (tile,) = (b for b in program.buffers if b.name == "x tile")
    assert tile.row_elements < shape[1] // (128 // shape[0])
    validate(program, CHIPS[2])
    got = run((program,), {"x": x})["out y"].reshape(shape)
    exact = OPS[op](x.double(), None, None)  # the host adds up millions in float32
    np.testing.assert_allclose(got, exact, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("count", [2**20, 2**21, 2**22, 2**23, 3_000_000])
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_a_long_row_of_one_more_is_no_cliff(op: str, count: int) -> None:
    for chip in ("trn1", "trn2", "trn3"):
        before, after, prime = (_us(op, 1, n, chip) for n in (count, count + 1, count + 7))
        assert max(after, prime) < 1.2 * before + 4
