"""Times against the chip's own figures: never below them, and far above them for a reason."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import torch_trn_emu
from torch_trn_emu.chip import Chip, get_chip

from .families import FAMILIES

TIMING = Path(__file__).parents[2] / "docs/timing.md"
SIZES = (64, 1000, 4097)
MOST = 5.0  # times the limit
PIPELINE_US = 12.0  # to fill and drain the pipelines of a program, beside the launch (chosen)


def limit_us(chip: Chip, family: str, size: int) -> float:
    """The longer of operands and results moved once and of the array's time, on a logical core."""
    function, arguments = FAMILIES[family](size)
    with FlopCounterMode(display=False) as counted:
        results = function(*arguments)
    tensors = [t for t in tree_leaves((arguments, results)) if isinstance(t, torch.Tensor)]
    cores = chip.check_lnc(None)
    moved = sum(t.numel() * t.element_size() for t in set(tensors))
    flops_per_s = chip.peak_flops("bfloat16") * cores
    bytes_per_s = chip.hbm_bytes_per_s_per_core() * cores
    return max(moved / bytes_per_s, counted.get_total_flops() / flops_per_s) * 1e6


def documented() -> Mapping[str, float]:
    """The table of docs/timing.md: how many times its limit a family may take."""
    section = TIMING.read_text().split("## Far above the limits")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| [^|]{20,} \|$", section, re.MULTILINE)
    return {family.strip(): float(times) for family, times in rows}


@pytest.mark.parametrize("family", FAMILIES)
def test_times_keep_their_distance_from_the_limits(family: str) -> None:
    most, found = documented().get(family, MOST), []
    for name in ("trn1", "trn2", "trn3"):
        chip = get_chip(name)
        for size in SIZES:
            with torch_trn_emu.precision("bf16"):
                made = torch_trn_emu.estimate(*_flat(family, size), chip=name)
            limit = limit_us(chip, family, size)
            starts = made.counters["launch_count"] * (
                chip.launch.kernel_overhead_s * 1e6 + PIPELINE_US
            )
            assert made.device_us >= limit
            if made.device_us > starts + most * limit:
                found.append((name, size, made.device_us, limit))
    assert not found


def test_reasons_are_of_families() -> None:
    assert documented()
    assert set(documented()) <= set(FAMILIES)


def _flat(family: str, size: int) -> tuple[object, ...]:
    function, arguments = FAMILIES[family](size)
    return (function, *arguments)
