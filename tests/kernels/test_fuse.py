"""Steps put together or moved to another engine compute the same."""

from collections import Counter

import numpy as np
import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import validate
from torch_trn_emu.kernels.rows import row_program
from torch_trn_emu.kernels.rows.balance_engines import shared_out
from torch_trn_emu.kernels.rows.fuse import fused
from torch_trn_emu.kernels.rows.values import Input, Kind, Output, Values, reduced, step

CHIP = get_chip("trn2")
ROWS, COLUMNS = 130, 40
COLUMN = Kind.COLUMN

SOFTMAX = [
    reduced("top", "x", "max"),
    step("shifted", "tensor_tensor", "x", "top", op="subtract"),
    step("e", "activation", "shifted", op="exp", scale=0.5),
    reduced("sum", "e"),
    step("inverse", "reciprocal", "sum", kind=COLUMN),
    step("y", "tensor_tensor", "e", "inverse", op="multiply"),
]
NORMALISED = [
    reduced("sum", "x"),
    step("mean", "tensor_scalar", "sum", kind=COLUMN, op0="multiply", imm0=1 / COLUMNS),
    reduced("top", "x", "max"),
    step("centred", "tensor_tensor", "x", "mean", op="subtract"),
    step("y", "tensor_tensor", "centred", "top", op="multiply"),
]
SCALED = [
    step("a", "tensor_scalar", "x", op0="multiply", imm0=3.0),
    step("b", "tensor_scalar", "x", op0="multiply", imm0=0.5),
    step("c", "tensor_tensor", "a", "b", op="add"),
    step("y", "tensor_scalar", "c", op0="multiply", imm0=2.0),
]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp((x - x.max(1, keepdims=True)) / 2)
    return e / e.sum(1, keepdims=True)


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) * x.max(1, keepdims=True)


EXPECTED = {"softmax": (SOFTMAX, softmax), "normalised": (NORMALISED, normalised)}


def computed(steps, stored=("y",)):
    x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    outputs = [Output(name, "float32") for name in stored]
    values = Values([Input("x", "float32")], steps, outputs)
    program = row_program("t", ROWS, COLUMNS, values, chip=CHIP)
    validate(program, CHIP)
    return x, Machine(CHIP).run(program, {"x": x})


def full(steps):
    return Counter(s.opcode for s in steps if s.kind is Kind.FULL)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_pair_is_one_instruction(name):
    steps, reference = EXPECTED[name]
    together = fused(steps, ["y"])
    assert sum(full(together).values()) == sum(full(steps).values()) - 1
    x, values = computed(together)
    np.testing.assert_allclose(values["out y"], reference(x), rtol=2e-6, atol=2e-6)


def test_what_is_stored_or_read_twice_stays():
    assert full(fused(SOFTMAX, ["y", "shifted"])) == full(SOFTMAX)
    twice = [*SOFTMAX, step("z", "tensor_tensor", "shifted", "shifted", op="multiply")]
    assert full(fused(twice, ["y", "z"])) == full(twice)


def test_a_chain_of_three_is_a_pair_and_one():
    chain = [*NORMALISED, step("z", "tensor_tensor", "y", "top", op="add")]
    together = fused(chain, ["z"])
    assert full(together) == {"tensor_tensor": 1, "tensor_scalar": 1}
    x, values = computed(together, stored=("z",))
    expected = normalised(x) + x.max(1, keepdims=True)
    np.testing.assert_allclose(values["out z"], expected, rtol=2e-6, atol=2e-6)


def test_scalar_takes_what_makes_vector_faster():
    moved = shared_out(SCALED, CHIP)
    # The sum takes Vector two passes at 0.96 GHz, the products Scalar three at 1.2 GHz.
    assert full(moved) == {"activation": 3, "tensor_tensor": 1}
    x, values = computed(moved)
    np.testing.assert_allclose(values["out y"], 7 * x, rtol=1e-6)


def test_scalar_takes_nothing_when_it_is_the_busier_one():
    busy = [step(f"e{i}", "activation", "x", op="exp") for i in range(3)]
    steps = [*busy, step("y", "tensor_scalar", "x", op0="multiply", imm0=2.0)]
    assert shared_out(steps, CHIP) == steps
