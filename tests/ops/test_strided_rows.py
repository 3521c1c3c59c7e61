"""Copies of short runs, which engines move within rows in SBUF: torch's elements, in few bytes."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import torch_trn_emu
from torch_trn_emu.chip import get_chip
from torch_trn_emu.kernels.strided_copy import Box
from torch_trn_emu.kernels.strided_rows import rows_of_boxes

from .calls import random
from .on_cores import computed

aten = torch.ops.aten
CLONE = partial(aten.clone.default, memory_format=torch.contiguous_format)
X = random(67, 101)
WIDE = random(67, 303)
CASES = {
    "stack": (aten.stack.default, [X, X + 1, X + 2], -1),
    "cat": (aten.cat.default, [WIDE[:, :3].contiguous(), random(67, 70), X[:, :1]], 1),
    "repeat": (aten.repeat.default, random(1400, 3), [1, 3]),
    "roll": (aten.roll.default, random(900, 8), [3], [1]),
    "constant_pad_nd": (aten.constant_pad_nd.default, random(700, 8), [1, 2], 1.5),
    "upsample_nearest2d": (aten.upsample_nearest2d.default, random(3, 5, 9, 14), [27, 28]),
    "slice_backward": (aten.slice_backward.default, random(67, 100), [67, 307], 1, 2, 302, 3),
    "clone": (CLONE, WIDE[:, 1::2]),
    "clone of a column": (CLONE, random(4201, 5)[:, 3]),
    "clone of planes": (CLONE, random(131, 17, 8)[:, 1:, 2:6:2]),
    "upsample_nearest2d of a plane": (aten.upsample_nearest2d.default, random(1, 1, 57, 34),
                                      [171, 102]),
    "upsample_nearest2d of rows": (aten.upsample_nearest2d.default, random(1, 1, 400, 7),
                                   [1200, 7]),
    "clone of rows that repeat": (CLONE, random(400, 1, 5).expand(400, 3, 5)),
    "repeat of runs": (aten.repeat.default, random(400, 1, 5), [1, 3, 1]),
    "cat of turned ones": (aten.cat.default, [random(90, 67).t(), random(67, 3)], 1),
    "cat of rows that repeat": (aten.cat.default, [random(1, 67).t().expand(67, 80)] * 2, 0),
    "stack of turned ones": (aten.stack.default, [random(90, 67).t(), random(67, 90)], -1),
    "repeat of turned ones": (aten.repeat.default, random(90, 67).t(), [1, 3]),
    "roll of turned ones": (aten.roll.default, random(90, 67).t(), [3], [1]),
    "flip of turned ones": (aten.flip.default, random(90, 67).t(), [0]),
    "slice_scatter of turned ones": (aten.slice_scatter.default, random(90, 67).t(),
                                     random(40, 67).t(), 1, 3, 83, 2),
    "clone of turned rows that repeat": (CLONE, random(80, 67).t()[:, None].expand(67, 3, 80)),
    "_to_copy of every other": (partial(aten._to_copy.default, dtype=torch.float16),
                                random(67, 180)[:, ::2]),
    "_to_copy of turned ones": (partial(aten._to_copy.default, dtype=torch.int32),
                                random(90, 67).t()),
    "repeat of runs and rows": (aten.repeat.default, random(1, 200, 1, 5), [2, 1, 3, 1]),
}  # fmt: skip

PASS_US = 4.0  # what one more program of a launch takes to start (chosen)


@pytest.mark.parametrize("name", CASES)
def test_elements(name: str) -> None:
    op, *arguments = CASES[name]
    cores, pairs = computed(name.split()[0], op, *arguments)
    assert cores
    assert pairs
    for got, expected in pairs:
        np.testing.assert_array_equal(got.reshape(expected.shape), expected)


LAYOUTS = {
    "turned": lambda x, y: y.t(),
    "every other": lambda x, y: torch.cat([x, x], 1)[:, ::2],
    "rows that repeat": lambda x, y: x[:1].expand(x.shape),
    "elements that repeat": lambda x, y: x[:, :1].expand(x.shape),
}
READERS = {
    "cat": lambda x: torch.cat([x, x], 0),
    "stack": lambda x: torch.stack([x, x], -1),
    "repeat": lambda x: x.repeat(1, 3),
    "roll": lambda x: x.roll(3, -1),
    "flip": lambda x: x.flip(0),
    "pad": lambda x: torch.nn.functional.pad(x, (1, 2)),
    "to wider": lambda x: x.to(torch.float64 if x.dtype == torch.float32 else torch.float32),
    "to narrower": lambda x: x.to(torch.float8_e4m3fn),
    "to whole numbers": lambda x: x.to(torch.int32),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", READERS)
def test_readers_of_views_take_no_longer_than_of_copies(name, layout, dtype) -> None:
    """Than a copy of the view in order, and the same of that."""
    x, turned = _empty(509, 641, dtype=dtype), _empty(641, 509, dtype=dtype)
    view = LAYOUTS[layout](x, turned)
    took, ordered, copied = (
        torch_trn_emu.estimate(f, t, chip="trn2").device_us
        for f, t in ((READERS[name], view), (READERS[name], x), (CLONE, view))
    )
    assert took <= 1.01 * (ordered + copied) + PASS_US


@pytest.mark.parametrize("step", [2, 3])
def test_what_lies_between_is_kept(step: int) -> None:
    whole = random(67, 301)
    part = whole[:, 1::step]
    _, pairs = computed("copy", aten.copy_.default, part, random(*part.shape))
    for got, expected in pairs:
        np.testing.assert_array_equal(got.reshape(expected.shape), expected)


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


TIMED: dict[str, Any] = {
    "stack": lambda x: torch.stack([x, x], -1),
    "every other": lambda x: x[..., ::2].contiguous(),
    "nearest": lambda x: torch.nn.functional.interpolate(
        x.view(2, 64, -1, 128), scale_factor=2, mode="nearest"
    ),
    "repeat": lambda x: x.view(-1, 4).repeat(1, 2),
    "into every other, which reads the others": lambda x: x.new_empty(1024, 4096)[:, ::2].copy_(x),
}


@pytest.mark.parametrize("target", [("trn1", 1), ("trn2", 1), ("trn3", 2)], ids=str)
@pytest.mark.parametrize("name", TIMED)
def test_time_is_of_bytes_rather_than_of_elements(name: str, target: tuple[str, int]) -> None:
    chip, cores = get_chip(target[0]), target[1]
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        x = _empty(1024, 2048, dtype=dtype)
        made = torch_trn_emu.estimate(TIMED[name], x, chip=target[0], lnc=cores)
        moved = x.nbytes + TIMED[name](x).untyped_storage().nbytes()
        limit_us = moved / chip.hbm_bytes_per_s_per_core() / cores * 1e6
        launches = made.counters["launch_count"]
        elements = max(x.numel(), TIMED[name](x).numel())
        most = 3 * max(limit_us, elements / 128 / cores / 0.96e3)  # an element a cycle and lane
        assert made.device_us < most + launches * (chip.launch.kernel_overhead_s * 1e6 + 12)


def test_rows_that_are_no_help() -> None:
    turned = Box(source="in", counts=(64, 128), to=0, to_strides=(128, 1), strides=(1, 64))
    assert rows_of_boxes([turned], 64 * 128, "float32") is None
    long = Box(source="in", counts=(64, 128), to=0, to_strides=(128, 1), strides=(256, 1))
    assert rows_of_boxes([long], 64 * 128, "float32") is None


@pytest.mark.parametrize("rows", [8, 100, 127, 128, 1000])
def test_elements_of_rows_are_picked_in_sbuf(rows: int) -> None:
    """Whatever the number of indices, and of rows but for a few."""
    for count in (100, 128, 600):
        x, index = _empty(rows, 768, dtype=torch.bfloat16), _empty(count, dtype=torch.int64)
        made = torch_trn_emu.estimate(lambda x, i: x.index_select(1, i), x, index)
        assert made.device_us < 60


@pytest.mark.parametrize(("shape", "count"), [((20, 300), 150), ((3, 7, 300), 150), ((200, 64), 9)])
def test_picked_elements(shape: tuple[int, ...], count: int) -> None:
    x, index = random(*shape), torch.arange(count) * 7 % shape[-1]
    cores, pairs = computed("index_select", aten.index_select.default, x, len(shape) - 1, index)
    assert cores
    for got, expected in pairs:
        np.testing.assert_array_equal(got.reshape(expected.shape), expected)
