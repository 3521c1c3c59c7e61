"""Products of any size: above the limits of the chip, without cliffs, on any chip and cores."""

from itertools import product

import pytest
import torch

import torch_trn_emu
from torch_trn_emu.chip import get_chip

from .families import empty

CORES = [("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 1), ("trn3", 2)]
DTYPES = [  # of operands, the policy, the format on the array
    (torch.float32, "fp32", "float32"),
    (torch.float32, "bf16", "bfloat16"),
    (torch.bfloat16, "bf16", "bfloat16"),
    (torch.bfloat16, "mxfp8", "mxfp8"),
]
SIZES = [
    (2, 12_288, 8191),
    (31, 50_257, 513),
    (127, 777, 8193),
    (512, 8191, 2047),
    (8193, 127, 200),
    (1025, 3000, 1024),
]


def took(
    m: int, k: int, n: int, dtype: torch.dtype, policy: str, target: tuple[str, int], turned: bool
) -> float:
    rhs = empty(n, k, dtype=dtype).t() if turned else empty(k, n, dtype=dtype)
    with torch_trn_emu.precision(policy):
        made = torch_trn_emu.estimate(
            torch.mm, empty(m, k, dtype=dtype), rhs, chip=target[0], lnc=target[1]
        )
    (row,) = made.ops
    assert row.status == "modelled"
    return made.device_us


@pytest.mark.parametrize("target", CORES, ids=str)
@pytest.mark.parametrize(("dtype", "policy", "compute"), DTYPES)
def test_products_take_their_bytes_and_multiplications(
    dtype: torch.dtype, policy: str, compute: str, target: tuple[str, int]
) -> None:
    chip, cores = get_chip(target[0]), target[1]
    native = compute if compute in chip.tensor_engine.macs_per_pe_cycle else "bfloat16"
    for (m, k, n), turned in product(SIZES, (False, True)):
        moved = (m * k + k * n + m * n) * dtype.itemsize
        limit_s = max(
            moved / chip.hbm_bytes_per_s_per_core(), 2 * m * k * n / chip.peak_flops(native)
        )
        us = took(m, k, n, dtype, policy, target, turned)
        assert us > limit_s / cores * 1e6, (m, k, n, turned)


# Numbers of rows per core: multiples of 128 elements of K that no group of four divides; edges
# of blocks of rows.
NEIGHBOURS = [
    ((64, 8191, 33), (0, 1, 0)),
    ((512, 8191, 2047), (0, 1, 0)),
    ((512, 8191, 2047), (1, 0, 0)),
    ((31, 1151, 1024), (0, 1, 0)),
    ((8193, 895, 33), (0, 1, 0)),
]


@pytest.mark.parametrize("target", CORES, ids=str)
@pytest.mark.parametrize(("dtype", "policy", "compute"), DTYPES)
def test_one_more_is_no_cliff(
    dtype: torch.dtype, policy: str, compute: str, target: tuple[str, int]
) -> None:
    for (m, k, n), more in NEIGHBOURS:
        size = (m * target[1], k, n)
        longer = [a + b for a, b in zip(size, more, strict=True)]
        times = [took(*s, dtype, policy, target, False) for s in (size, longer)]
        small, large = sorted(times)
        assert large < 1.27 * small + 4, (size, times)  # four tiles of rows become five


@pytest.mark.parametrize("target", [("trn2", 1), ("trn3", 1)], ids=str)
@pytest.mark.parametrize("name", ["roll", "flip", "repeat", "cat"])
def test_one_core_moves_no_more_than_its_share(name: str, target: tuple[str, int]) -> None:
    calls = {
        "roll": lambda x: x.roll(3, 1),
        "flip": lambda x: x.flip(0),
        "repeat": lambda x: x.repeat(2, 1),
        "cat": lambda x: torch.cat([x, x], 0),
    }
    rate = get_chip(target[0]).hbm_bytes_per_s_per_core()
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        x = empty(2047, 4096, dtype=dtype)
        made = torch_trn_emu.estimate(calls[name], x, chip=target[0], lnc=target[1])
        moved = (x.numel() + calls[name](x).numel()) * dtype.itemsize
        assert made.device_us > moved / rate * 1e6
