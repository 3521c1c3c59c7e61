"""Programs of the other families compute on the machine what numpy computes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import validate
from torch_trn_emu.kernels.pointwise import (
    activation,
    copy,
    pointwise,
    tensor_scalar,
    tensor_tensor,
)
from torch_trn_emu.kernels.reduce_rows import reduce_rows
from torch_trn_emu.kernels.transpose import transpose

TRN2 = get_chip("trn2")
RNG = np.random.default_rng(2)


def _data(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(elements=st.integers(1, 3000))
def test_pointwise_of_any_length(elements: int) -> None:
    a, b = _data(elements), _data(elements)
    steps = [
        tensor_tensor("add"),
        tensor_scalar(-1, op0="multiply", imm0=0.5),
        activation("relu", -1),
    ]
    program = pointwise(
        "steps", elements, ["float32"] * 2, "bfloat16", steps, chip=TRN2, tile_bytes=64
    )
    validate(program, TRN2)
    out = Machine(TRN2).run(program, {"in0": a, "in1": b})["out"]
    # Intermediates have the output's dtype: each step rounds.
    rounded = (a + b).astype(ml_dtypes.bfloat16).astype(np.float32)
    expected = np.maximum((rounded * 0.5).astype(ml_dtypes.bfloat16), 0).astype(np.float32)
    np.testing.assert_array_equal(out, expected)


def test_several_steps_can_be_stored() -> None:
    x = _data(1000)
    steps = [tensor_scalar(0, op0="add", imm0=1.0), tensor_scalar(-1, op0="multiply", imm0=2.0)]
    program = pointwise("two", 1000, ["float32"], "float32", steps, chip=TRN2, outputs=(0, 1))
    out = Machine(TRN2).run(program, {"in0": x})
    np.testing.assert_array_equal(out["out"], x + 1)
    np.testing.assert_array_equal(out["out1"], 2 * (x + 1))


def test_many_operands_still_fit() -> None:
    steps = [tensor_tensor("add", 0, k) for k in range(1, 12)]
    program = pointwise("many", 10**7, ["float32"] * 12, "float32", steps, chip=TRN2)
    validate(program, TRN2)


def test_no_step_is_a_copy_and_copy_converts() -> None:
    x = _data(1000)
    plain = pointwise("copy", 1000, ["float32"], "float32", [], chip=TRN2)
    np.testing.assert_array_equal(Machine(TRN2).run(plain, {"in0": x})["out"], x)
    cast = pointwise("cast", 1000, ["float32"], "bfloat16", [copy()], chip=TRN2)
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(Machine(TRN2).run(cast, {"in0": x})["out"], expected)


@pytest.mark.parametrize("shape", [(1, 1), (130, 40), (200, 9000)])
@pytest.mark.parametrize(("op", "reference"), [("add", np.sum), ("max", np.max)])
def test_reduce_rows(shape: tuple[int, int], op: str, reference: object) -> None:
    x = _data(*shape)
    program = reduce_rows(*shape, op=op, chip=TRN2)
    validate(program, TRN2)
    out = Machine(TRN2).run(program, {"in": x})["out"]
    exact = reference(x.astype(np.float64), axis=1)  # type: ignore[operator]
    bound = shape[1] * 2.0**-24 * np.abs(x).astype(np.float64).sum(axis=1)
    assert (np.abs(out[:, 0] - exact) <= bound).all()


@pytest.mark.parametrize("shape", [(1, 1), (130, 70), (600, 2100)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_transpose(shape: tuple[int, int], dtype: str) -> None:
    x = _data(*shape).astype(ml_dtypes.bfloat16).astype(np.float32)
    program = transpose(*shape, chip=TRN2, dtype=dtype)
    validate(program, TRN2)
    np.testing.assert_array_equal(Machine(TRN2).run(program, {"in": x})["out"], x.T)
