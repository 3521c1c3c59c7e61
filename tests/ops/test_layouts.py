"""Operators of awkward shapes still use the chip: no price is many times that of the traffic."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torch_trn_emu

LAUNCH_S = 15e-6  # to start and end a program, and to fill its pipelines
BYTES_PER_S = 600e9  # about what one logical core of trn3 gets of its HBM
SHAPES = (
    (500_000,),
    (1, 500_000),
    (500_000, 1),
    (8, 65_536),
    (65_536, 8),
    (4096, 512),
    (32, 64, 28, 28),
    (2, 3, 224, 224),
    (16, 1, 1, 30_000),
)
Shape = tuple[int, ...]


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def times(operation: Callable[..., Any], *arguments: Any) -> float:
    """The core's time as a multiple of what a launch and moving operand and result take."""
    counters = torch_trn_emu.estimate(operation, *arguments).counters
    moved = 2 * arguments[0].numel() * arguments[0].element_size()
    floor = LAUNCH_S * counters["launch_count"] + moved / BYTES_PER_S
    return counters["core_busy_time"] / floor


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_value_for_many(shape: Shape) -> None:
    """Of a tensor of one element, and of what repeats along any dimension."""
    x = empty(*shape)
    assert times(torch.mul, x, empty()) < 2
    assert times(torch.sub, x, empty(1)) < 2


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_rows_short_and_long(shape: Shape) -> None:
    x, size = empty(*shape), shape[-1:]
    assert times(lambda x: x.softmax(-1), x) < 3
    assert times(lambda x: x.logsumexp(-1), x) < 3
    if 1 < shape[-1] < 65_536:  # weights lie on every partition
        assert times(lambda x: F.layer_norm(x, size, empty(*size), empty(*size)), x) < 5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reductions_along_any_dimension(shape: Shape) -> None:
    x = empty(*shape)
    for operation in (torch.sum, torch.amax, torch.mean):
        assert times(operation, x) < 4
        for dim in range(len(shape)):
            assert times(partial(operation, dim=dim), x) < 12, (operation, dim)
    assert times(torch.var, x) < 10


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operands_that_repeat_along_any_dimension(shape: Shape) -> None:
    x = empty(*shape)
    for dim, size in enumerate(shape):
        others = (1,) * dim, (1,) * (len(shape) - dim - 1)
        assert times(torch.mul, x, empty(*others[0], size, *others[1])) < 4
        assert times(torch.add, x, empty(*shape[:dim], 1, *shape[dim + 1 :])) < 4
