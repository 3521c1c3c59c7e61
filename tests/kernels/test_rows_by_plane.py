"""Programs over [images, planes, pixels] with planes on the partitions."""

import numpy as np
import pytest
import torch

from tests.ops.calls import random, run
from torch_trn_emu.chip import get_chip
from torch_trn_emu.isa import Role, validate
from torch_trn_emu.kernels.rows import planes_program, row_program
from torch_trn_emu.kernels.rows.values import Input, Kind, Output, Values, step
from torch_trn_emu.timing import price

VALUES = Values(
    [Input("x", "float32"), Input("w", "float32", Kind.COLUMN), Input("b", "float32", Kind.COLUMN)],
    [
        step("y", "tensor_scalar", "x", "w", "b", op0="multiply", op1="add"),
        step("z", "activation", "y", op="relu"),
    ],
    [Output("z", "float32", "z")],
)
SHAPES = [(2, 3, 5), (5, 130, 49), (1, 200, 7), (3, 16, 2048), (9, 64, 400)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_plane_has_its_values(shape: tuple[int, int, int]) -> None:
    images, planes, pixels = shape
    x, w, b = random(*shape), random(planes), random(planes)
    for name in ("trn1", "trn2", "trn3"):
        chip = get_chip(name)
        program = planes_program("planes", planes, images, pixels, VALUES, chip=chip)
        validate(program, chip)
        got = run((program,), {"x": x, "w": w, "b": b})["z"].reshape(shape)
        want = torch.relu(x * w[:, None] + b[:, None])
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_values_of_planes_are_loaded_once() -> None:
    chip = get_chip("trn3")
    plain = row_program("rows", 16 * 512, 196, VALUES, chip=chip)
    turned = planes_program("planes", 512, 16, 196, VALUES, chip=chip)
    assert 2 * price(turned, chip).total_s < price(plain, chip).total_s
    read = {b.name: b.elements for b in turned.buffers if b.role is Role.INPUT}
    assert read == {"x": 16 * 512 * 196, "w": 512, "b": 512}
