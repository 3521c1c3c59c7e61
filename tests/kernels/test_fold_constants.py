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
