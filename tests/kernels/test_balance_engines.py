"""Where steps run follows from the chip's description; what they compute does not."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from torch_trn_emu.chip import CHIPS, get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import Engine, validate
from torch_trn_emu.kernels.rows import row_program
from torch_trn_emu.kernels.rows.balance_engines import shared_out
from torch_trn_emu.kernels.rows.values import Input, Kind, Output, Values, reduced, step
from torch_trn_emu.ops.normalization import row_op
from torch_trn_emu.timing import price

TRN3 = get_chip("trn3")
WITHOUT = replace(TRN3, vector_engine=replace(TRN3.vector_engine, exponential_per_lane_cycle=0.0))
ROWS, COLUMNS = 300, 70


def opcodes(program):
    return Counter(i.opcode for i in program.instructions())


def reference(name, x):
    shifted = x - x.max(1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(1, keepdims=True)
    return {
        "softmax": e / total,
        "log_softmax": shifted - np.log(total),
        "logsumexp": np.log(total) + x.max(1, keepdims=True),
    }[name]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_values_are_the_same_on_every_chip(name, chip):
    described = get_chip(chip)
    program = row_op(name, ROWS, COLUMNS, "float32", chip=described)
    validate(program, described)
    x = 10 * np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    values = Machine(described).run(program, {"x": x})
    np.testing.assert_allclose(values["out y"], reference(name, x), rtol=3e-6, atol=3e-6)


def test_softmax_exponentiates_on_vector_where_that_is_faster():
    size = (2**13, 4096)
    fast, slow = (row_op("softmax", *size, "bfloat16", chip=c) for c in (TRN3, WITHOUT))
    assert opcodes(fast)["exponential"]
    assert not opcodes(fast)["activation_reduce"]
    assert opcodes(slow)["activation_reduce"]
    assert price(fast, TRN3).total_s < 0.9 * price(slow, WITHOUT).total_s
    assert not opcodes(row_op("softmax", *size, "bfloat16", chip=get_chip("trn2")))["exponential"]


def test_exponentials_of_a_busy_vector_engine_stay_on_scalar():
    busy = [step(f"b{k}", "tensor_tensor", "x", "x", op="add") for k in range(3)]
    steps = [*busy, step("y", "activation", "x", op="exp")]
    assert shared_out(steps, TRN3) == steps


def test_half_of_the_exponentials_go_to_vector_if_scalar_has_nothing_else():
    steps = [step(f"e{k}", "activation", "x", op="exp") for k in range(3)]
    moved = shared_out(steps, TRN3)
    # Two elements a cycle on Vector: two of three take it as long as one takes Scalar.
    assert Counter(s.opcode for s in moved) == {"exponential": 2, "activation": 1}
    assert shared_out(steps, WITHOUT) == steps


def test_scalar_takes_tensor_scalar_where_it_runs_it():
    steps = [
        step(f"s{k}", "tensor_scalar", "x", op0="add", imm0=1.0, op1="max", imm1=0.0)
        for k in range(4)
    ]
    moved = shared_out(steps, TRN3)
    assert Counter(s.engine for s in moved) == {None: 2, Engine.SCALAR: 2}
    assert shared_out(steps, get_chip("trn2")) == steps


def test_a_reciprocal_of_each_row_needs_no_table():
    chip = get_chip("trn2")
    graph = [
        step("e", "activation", "x", op="exp"),
        reduced("total", "e"),
        step("inverse", "activation", "total", kind=Kind.COLUMN, op="reciprocal", scale=1.0),
        step("y", "tensor_tensor", "e", "inverse", op="multiply"),
    ]
    values = Values([Input("x", "float32")], shared_out(graph, chip), [Output("y", "float32")])
    program = row_program("t", ROWS, COLUMNS, values, chip=chip)
    assert opcodes(program)["reciprocal"]
    assert price(program, chip).table_loads == 1
    x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    result = Machine(chip).run(program, {"x": x})
    np.testing.assert_allclose(result["out y"], reference("softmax", x), rtol=3e-6, atol=3e-6)


def test_an_activation_adds_up_what_it_makes():
    chip = get_chip("trn2")
    program = row_op("softmax", ROWS, 4096, "bfloat16", chip=chip)
    assert opcodes(program)["tensor_reduce"] == 2 + 1  # maxima: two tiles, the ragged one
    assert opcodes(program)["activation_reduce"]
    long = row_op("softmax", ROWS, 50257, "bfloat16", chip=chip)  # in chunks
    validate(long, chip)


def test_a_sum_in_chunks_is_that_of_the_row():
    chip = get_chip("trn1")
    x = np.random.default_rng(0).standard_normal((140, 30000)).astype(np.float32)
    program = row_op("softmax", *x.shape, "float32", chip=chip)
    assert opcodes(program)["activation_reduce"]
    values = Machine(chip).run(program, {"x": x})
    np.testing.assert_allclose(values["out y"], reference("softmax", x), rtol=3e-6, atol=3e-6)
