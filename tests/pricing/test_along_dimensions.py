"""What works along one dimension, whichever it is: a program, above its bytes, without cliffs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import torch_trn_emu
from torch_trn_emu.chip import get_chip

from .families import empty

Along = Callable[[torch.Tensor, int], Any]
ALONG: dict[str, Along] = {
    "argmax": lambda x, d: x.argmax(d),
    "min": lambda x, d: x.min(d),
    "cummax": lambda x, d: x.cummax(d),
    "cumsum": lambda x, d: x.cumsum(d),
    "cumprod": lambda x, d: x.cumprod(d),
    "logcumsumexp": lambda x, d: x.logcumsumexp(d),
}
SHAPES = (
    [(n, c) for n in (2, 31, 1000, 8193) for c in (5, 300, 4097)]
    + [(257, n, c) for n in (2, 65) for c in (3, 64, 1025)]
    + [(20_000, 2, 5), (40_000, 11)]
)
CORES = [("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 1), ("trn3", 2)]


@pytest.mark.parametrize(("chip", "lnc"), CORES)
@pytest.mark.parametrize("name", ALONG)
def test_it_has_a_program_that_takes_its_bytes(name: str, chip: str, lnc: int) -> None:
    call, rate = ALONG[name], get_chip(chip).hbm_bytes_per_s_per_core() * lnc
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            for dim in range(len(shape)):
                x = empty(*shape, dtype=dtype)
                made = torch_trn_emu.estimate(call, x, dim, chip=chip, lnc=lnc)
                (row,) = made.ops
                tensors = [x, *tree_leaves(call(x, dim))]
                moved = sum(t.numel() * t.element_size() for t in tensors)
                assert row.status == "modelled", (shape, dim)
                assert made.device_us > moved / rate * 1e6, (shape, dim, dtype)


# Times of the bytes, and what starting, filling and draining of pipelines take (chosen), for as
# many rows and columns as fill the partitions.
MOST = {"argmax": 14, "min": 14, "cummax": 12, "cumsum": 10, "cumprod": 9, "logcumsumexp": 17}


@pytest.mark.parametrize("shape", [(65, 65_536), (2049, 4096), (40_000, 2, 40)], ids=str)
@pytest.mark.parametrize("name", ALONG)
def test_many_columns_take_a_few_times_their_bytes(name: str, shape: tuple[int, ...]) -> None:
    call, rate = ALONG[name], get_chip("trn2").hbm_bytes_per_s_per_core() * 2
    x = empty(*shape)
    took = torch_trn_emu.estimate(call, x, len(shape) - 2, chip="trn2").device_us
    moved = sum(t.numel() * t.element_size() for t in (x, *tree_leaves(call(x, len(shape) - 2))))
    assert took - 23 < MOST[name] * moved / rate * 1e6


@pytest.mark.parametrize("name", ALONG)
@pytest.mark.parametrize("shape", [(64, 8192), (8100, 64), (33, 32_768), (500, 16, 33)], ids=str)
def test_one_more_of_any_dimension_is_no_cliff(name: str, shape: tuple[int, ...]) -> None:
    def took(*sizes: int) -> float:
        return torch_trn_emu.estimate(ALONG[name], empty(*sizes), len(sizes) - 2).device_us

    before = took(*shape)
    for k in range(len(shape)):
        longer = [n + (d == k) for d, n in enumerate(shape)]
        small, large = sorted((before, took(*longer)))
        assert large < 1.2 * small + 4, longer


LONGEST = {"logcumsumexp": 24}  # times the operand's bytes: twenty passes over an element


@pytest.mark.parametrize("count", [65_536, 1_048_576, 8_388_608])
@pytest.mark.parametrize("name", [*ALONG, "topk"])
def test_a_single_row_of_any_length_lies_on_all_partitions(name: str, count: int) -> None:
    call = ALONG.get(name, lambda x, d: x.topk(5, d))
    times = [torch_trn_emu.estimate(call, empty(n), 0) for n in (count, count + 1)]
    assert all(row.status == "modelled" for made in times for row in made.ops)
    small, large = sorted(made.device_us for made in times)
    assert large < 1.2 * small + 4
    assert (
        large
        < 36 + LONGEST.get(name, 20) * count * 4 / get_chip("trn3").hbm_bytes_per_s_per_core() * 1e6
    )


MOVED: dict[str, Along] = {
    "roll": lambda x, d: x.roll(3, d),
    "flip": lambda x, d: x.flip(d),
    "cat": lambda x, d: torch.cat([x, x], d),
}


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("chip", ["trn2", "trn3"])
def test_two_cores_move_no_slower_than_one(name: str, chip: str) -> None:
    """Also where the first dimension is odd, or of one element."""
    for shape in ((3, 1025, 4095), (3, 457_689), (1, 5, 1000, 1001), (5, 1000, 1000)):
        one, two = (
            torch_trn_emu.estimate(MOVED[name], empty(*shape), 1, chip=chip, lnc=n).device_us
            for n in (1, 2)
        )
        assert two < 1.02 * one, shape
