"""Transposes within partitions: every element is at its place, whatever the sizes and the dtype."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu import estimate
from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import validate
from torch_trn_emu.kernels.transpose_narrow import transpose_narrow

from .on_cores import computed

TRN1 = get_chip("trn1")  # whose SBUF is the smallest
SHAPES = [
    (1, 1, 5), (1, 300, 7), (1, 7, 300), (1, 3, 5001), (40, 33, 20), (700, 5, 4), (3, 900, 31),
    (3, 31, 900), (1, 40_000, 9), (2, 3, 40_000), (1, 300, 200), (2, 500, 700), (3, 300, 300),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_element_is_at_its_place(shape: tuple[int, int, int]) -> None:
    outer, rows, columns = shape
    x = np.arange(outer * rows * columns, dtype=np.float32).reshape(outer * rows, columns)
    program = transpose_narrow(*shape)
    validate(program, TRN1)
    out = Machine(TRN1).run(program, {"in": x})["out"].reshape(outer, columns, rows)
    np.testing.assert_array_equal(out, x.reshape(shape).transpose(0, 2, 1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bfloat16, torch.bool], ids=str)
@pytest.mark.parametrize(
    "shape", [(300, 6), (6, 300), (3, 200, 5), (2, 7, 150), (2, 2, 3, 130)], ids=str
)
def test_calls_on_two_cores(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.arange(torch.Size(shape).numel()).reshape(shape) * 8_000_003).to(dtype)
    for given in (x.transpose(-1, -2), x.transpose(-1, -2).contiguous().transpose(-1, -2)):
        clone: Any = torch.ops.aten.clone.default
        cores, pairs = computed(
            "clone", partial(clone, memory_format=torch.contiguous_format), given
        )
        assert cores
        for made, expected in pairs:
            assert torch.equal(made, expected)


@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
def test_they_take_a_few_times_their_bytes(chip: str) -> None:
    """Whatever the dtype, and one more of either dimension is no cliff."""
    rate = get_chip(chip).hbm_bytes_per_s_per_core() * get_chip(chip).check_lnc(None)
    for dtype in (torch.float32, torch.int32, torch.bfloat16, torch.bool):
        for n in (2, 7, 31, 64, 128, 300):
            for shape in ((65_536, n), (n, 65_536), (16, 4096, n), (4096, 16, n)):
                times = [
                    estimate(_copied, torch.empty(s, dtype=dtype, device="meta"), chip=chip)
                    for s in (shape, (*shape[:-2], shape[-2] + 1, shape[-1]))
                ]
                first, longer = (made.device_us for made in times)
                x = torch.empty(shape, dtype=dtype, device="meta")
                limit = 2 * x.numel() * x.element_size() / rate * 1e6
                assert limit < first < 23 + (5 if x.element_size() == 4 else 12) * limit
                small, large = sorted((first, longer))
                assert large < 1.2 * small * (shape[-2] + 1) / shape[-2] + 4, (shape, dtype)


def _copied(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-1, -2).contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32], ids=str)
@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((40, 20, 33), (2, 1, 0)),
        ((16, 70, 1, 33), (3, 2, 1, 0)),
        ((5, 16, 9, 33), (3, 2, 1, 0)),
        ((6, 40, 30, 4), (0, 3, 2, 1)),
        ((40, 20, 33), (1, 2, 0)),
        ((4, 10, 20, 33), (2, 3, 0, 1)),
    ],
    ids=str,
)
def test_any_order_of_dimensions(
    shape: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype
) -> None:
    """The last dimension is turned, then runs of it are moved, or what lies together is one."""
    x = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    clone: Any = torch.ops.aten.clone.default
    dense = partial(clone, memory_format=torch.contiguous_format)
    cores, pairs = computed("clone", dense, x.permute(order))
    assert cores
    for made, expected in pairs:
        assert torch.equal(made, expected)


@pytest.mark.parametrize("chip", ["trn1", "trn3"])
def test_reversed_dimensions_take_a_few_times_their_bytes(chip: str) -> None:
    """It was a descriptor for each element: up to 115 times."""
    rate = get_chip(chip).hbm_bytes_per_s_per_core() * get_chip(chip).check_lnc(None)
    for shape in ((64, 1024, 33), (64, 300, 129), (128, 4, 512)):
        x = torch.empty(shape, device="meta")
        took = estimate(lambda x: x.permute(2, 1, 0).contiguous(), x, chip=chip).device_us
        assert took < 30 + 10 * x.numel() * 4 / rate * 1e6, shape
