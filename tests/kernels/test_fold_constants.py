"""Constants taken along by the instruction that reads their product compute the same."""

import numpy as np
import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import validate
from torch_trn_emu.kernels.rows import row_program
from torch_trn_emu.kernels.rows.fold_constants import absorbed
from torch_trn_emu.kernels.rows.values import Input, Kind, Output, Values, reduced, step

CHIP = get_chip("trn2")
ROWS, COLUMNS = 130, 40
INPUTS = [
    Input("x", "float32"),
    Input("w", "float32", Kind.ROW),
    Input("c", "float32", Kind.COLUMN),
]


def times(name, of, constant):
    return step(name, "tensor_scalar", of, op0="multiply", imm0=constant)


def then(op, *reads):
    return step("y", "tensor_tensor", *reads, op=op)


CASES = {
    "scale": ([times("a", "x", 0.5), step("y", "activation", "a", op="exp", scale=3.0)],
              lambda x, w, c: np.exp(1.5 * x), "activation"),
    "first": ([times("a", "x", 3.0), then("subtract", "a", "w")],
              lambda x, w, c: 3 * x - w, "scalar_tensor_tensor"),
    "second": ([times("a", "x", 3.0), then("subtract", "w", "a")],
               lambda x, w, c: w - 3 * x, "scalar_tensor_tensor"),
    "greatest": ([times("a", "x", 3.0), then("max", "w", "a")],
                 lambda x, w, c: np.maximum(w, 3 * x), "scalar_tensor_tensor"),
    "two constants": ([times("a", "x", 3.0), step("y", "tensor_scalar", "a", op0="add", imm0=1.0)],
                      lambda x, w, c: 3 * x + 1, "tensor_scalar"),
}  # fmt: skip
APART = {
    "one a row": [times("a", "x", 3.0), then("add", "a", "c")],
    "read twice": [times("a", "x", 3.0), then("add", "a", "a")],
    "another order": [times("a", "x", 3.0), then("greater", "w", "a")],
    "reduced": [times("a", "x", 3.0), reduced("y", "a")],
}


@pytest.mark.parametrize("name", CASES)
def test_a_constant_costs_nothing(name):
    steps, reference, opcode = CASES[name]
    together = absorbed(INPUTS, steps, ["y"])
    assert [s.opcode for s in together] == [opcode]
    program = row_program(
        "t", ROWS, COLUMNS, Values(INPUTS, together, [Output("y", "float32")]), chip=CHIP
    )
    validate(program, CHIP)
    rng = np.random.default_rng(0)
    shapes = {"x": (ROWS, COLUMNS), "w": (1, COLUMNS), "c": (ROWS, 1)}
    given = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    values = Machine(CHIP).run(program, given)
    np.testing.assert_allclose(values["out y"], reference(**given), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", APART)
def test_what_no_instruction_does_stays(name):
    assert absorbed(INPUTS, APART[name], ["y"]) == APART[name]


def test_what_is_stored_stays():
    steps = CASES["scale"][0]
    assert absorbed(INPUTS, steps, ["a", "y"]) == steps


def test_a_constant_times_a_truth_goes_to_the_row():
    """(equal * -0.3) * c as equal * (-0.3 * c): one pass, and the same bits."""
    steps = [
        step("hot", "tensor_scalar", "x", "c", op0="equal"),
        times("a", "hot", -0.3),
        step("y", "tensor_scalar", "a", "c", op0="multiply"),
    ]
    together = absorbed(INPUTS, steps, ["y"])
    assert [(s.opcode, s.kind) for s in together if s.kind is Kind.FULL] == [
        ("tensor_scalar", Kind.FULL)
    ] * 2
    c = np.linspace(-2, 2, ROWS, dtype=np.float32).reshape(ROWS, 1)
    x = np.where(np.arange(COLUMNS) % 3 == 0, c, 7).astype(np.float32)
    made = []
    for some in (steps, together):
        values = Values(INPUTS, some, [Output("y", "float32")])
        program = row_program("t", ROWS, COLUMNS, values, chip=CHIP)
        given = {"x": x, "c": c, "w": np.zeros((1, COLUMNS), np.float32)}
        made.append(Machine(CHIP).run(program, given)["out y"])
    np.testing.assert_array_equal(*made)


def test_a_factor_of_one_is_left_out():
    steps = [times("a", "x", 1.0), step("y", "activation", "a", op="exp")]
    assert [s.reads for s in absorbed(INPUTS, steps, ["y"])] == [("x",)]
    assert absorbed(INPUTS, steps, ["a", "y"]) == steps
