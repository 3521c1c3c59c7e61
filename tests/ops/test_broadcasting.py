"""Operands that repeat along rows, down columns, everywhere or otherwise give torch's values."""

import pytest
import torch

from torch_trn_emu.ops.elementwise import elementwise
from torch_trn_emu.ops.formulas import steps_of

from .calls import TARGET, Machine, describe, random
from .on_cores import CHIP, computed

aten = torch.ops.aten
PAIRS = [  # a row, a column, both, one value, another pattern; short rows, rows in pieces, in turn
    ((140, 33), (33,)), ((140, 33), (140, 1)), ((1501, 5), (5,)), ((1501, 5), (1501, 1)),
    ((2, 5000), (5000,)), ((2, 5000), (2, 1)), ((129, 4200), (129, 1)),
    ((129, 4200), (4200,)), ((12, 40, 64), (40, 64)), ((12, 40, 64), (12, 1, 1)),
    ((40, 64), ()), ((12, 40, 64), (12, 1, 64)), ((1, 64), (300, 1)),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_values(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (random(*shape) for shape in pair)
    calls = [
        ("sub", aten.sub.Tensor, (b, a)),
        ("where", aten.where.self, (b > 0, a, b)),
        ("div", aten.div.Tensor, (a, 2 + b.abs())),
    ]
    for name, op, operands in calls if a.numel() < 50_000 else calls[:1]:
        cores, pairs = computed(name, op, *operands)
        assert cores
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)


def test_a_copy_that_repeats() -> None:
    row, out = random(33), torch.empty(140, 33)
    program = elementwise("copy", [], [describe(row)], describe(out), TARGET)
    made = Machine(CHIP).run(program, {"in0": row.numpy()})["out"]
    assert torch.equal(torch.from_numpy(made).reshape(140, 33), row.expand(140, 33))


def test_sixteen_bits_between_steps() -> None:
    """A step's result has the dtype of the operator's result."""
    x, row = random(300, 40).bfloat16(), random(40).bfloat16()
    steps = steps_of(lambda x, row: (x + row) * x, 2)
    program = elementwise("both", steps, [describe(x), describe(row)], describe(x), TARGET)
    feeds = {"in0": x.float().numpy().reshape(-1), "in1": row.float().numpy()}
    made = torch.from_numpy(Machine(CHIP).run(program, feeds)["out"].astype("float32"))
    expected = (x + row) * x
    assert torch.equal(made.reshape(300, 40).bfloat16(), expected)
