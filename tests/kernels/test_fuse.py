"""Steps put together or moved to another engine compute the same."""

from collections import Counter

import numpy as np
import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import validate
from torch_trn_emu.kernels.rows import row_program
from torch_trn_emu.kernels.rows.balance_engines import shared_out
from torch_trn_emu.kernels.rows.fuse import by_row, fused, with_factors
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


INPUTS = [Input("x", "float32")]


def computed(steps, stored=("y",)):
    x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    outputs = [Output(name, "float32") for name in stored]
    values = Values(INPUTS, steps, outputs)
    program = row_program("t", ROWS, COLUMNS, values, chip=CHIP)
    validate(program, CHIP)
    return x, Machine(CHIP).run(program, {"x": x})


def full(steps):
    return Counter(s.opcode for s in steps if s.kind is Kind.FULL)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_pair_is_one_instruction(name):
    steps, reference = EXPECTED[name]
    together = fused(INPUTS, steps, ["y"])
    assert sum(full(together).values()) == sum(full(steps).values()) - 1
    x, values = computed(together)
    np.testing.assert_allclose(values["out y"], reference(x), rtol=2e-6, atol=2e-6)


def test_what_is_stored_or_read_twice_stays():
    alone = full(by_row(INPUTS, SOFTMAX))
    assert full(fused(INPUTS, SOFTMAX, ["y", "shifted"])) == alone
    twice = [*SOFTMAX, step("z", "tensor_tensor", "shifted", "shifted", op="multiply")]
    assert full(fused(INPUTS, twice, ["y", "z"])) == full(by_row(INPUTS, twice))


def test_a_chain_of_three_is_a_pair_and_one():
    chain = [*NORMALISED, step("z", "tensor_tensor", "y", "top", op="add")]
    together = fused(INPUTS, chain, ["z"])
    assert full(together) == {"tensor_scalar": 2}
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


FACTORS = [
    ("first", lambda x, c, z: x * c - z, [("a", "multiply", "x", "c")], ("subtract", "a", "z")),
    ("second", lambda x, c, z: z - x * c, [("a", "multiply", "x", "c")], ("subtract", "z", "a")),
    ("a sum", lambda x, c, z: (x + c) * z, [("a", "add", "x", "c")], ("multiply", "z", "a")),
    ("both", lambda x, c, z: x * c + z * c,
     [("a", "multiply", "x", "c"), ("b", "multiply", "z", "c")], ("add", "a", "b")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "products", "last"), [f[1:] for f in FACTORS], ids=[f[0] for f in FACTORS]
)
@pytest.mark.parametrize("columns", [COLUMNS, 8])  # alone and side by side on a partition
def test_a_factor_of_a_row_costs_nothing(reference, products, last, columns):
    inputs = [Input("x", "float32"), Input("c", "float32", Kind.COLUMN), Input("z", "float32")]
    op, *reads = last
    steps = [step(name, "tensor_tensor", *of, op=kind) for name, kind, *of in products]
    steps = by_row(inputs, [*steps, step("y", "tensor_tensor", *reads, op=op)])
    together = with_factors(inputs, steps, ["y"])
    assert sum(full(together).values()) == len(products)
    assert full(together)["scalar_tensor_tensor"] == 1
    rng = np.random.default_rng(0)
    shapes = {"x": (512, columns), "c": (512, 1), "z": (512, columns)}
    given = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    values = Values(inputs, together, [Output("y", "float32")])
    program = row_program("t", 512, columns, values, chip=CHIP)
    validate(program, CHIP)
    made = Machine(CHIP).run(program, given)["out y"]
    np.testing.assert_allclose(made.reshape(512, columns), reference(**given), rtol=2e-6, atol=2e-6)
