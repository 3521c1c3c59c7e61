"""Operators far above their limits, by kinds of sizes and dtypes: as far as documented."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

import torch_trn_emu
from torch_trn_emu.chip import get_chip

from .families import empty
from .test_limits import PIPELINE_US

TIMING = Path(__file__).parents[2] / "docs/timing.md"
DTYPES = (torch.float32, torch.bfloat16)
Shapes = tuple[tuple[int, ...], ...]
MANY: Shapes = ((8192, 64), (4096, 1000), (511, 8193))
FIRST: Shapes = (*MANY, (65, 4096, 33))
REVERSED: Shapes = ((64, 1024, 33), (8, 300, 129))
ROW: Shapes = ((65_537,), (1_000_000,))
SHORT: Shapes = ((65_536, 8), (40_000, 5))
IMAGES: Shapes = ((8, 64, 112, 112), (32, 256, 14, 14))
FEW_CHANNELS: Shapes = ((1, 32, 112, 112), (8, 16, 56, 56), (1, 96, 56, 56))
GRADIENTS: Shapes = ((8192, 64), (4096, 1024), (8192, 4096))
NARROW: Shapes = ((16_381, 83), (8192, 101))
LISTS: Shapes = ((383, 1789), (4096, 64), (100, 8193))


def _depthwise(x: torch.Tensor) -> torch.Tensor:
    channels = x.shape[1]
    return F.conv2d(x, x.new_empty(channels, 1, 3, 3), padding=1, groups=channels)


def _layer_norm_backward(x: torch.Tensor) -> Any:
    moment, w = x.new_empty(len(x), 1, dtype=torch.float32), x.new_empty(x.shape[1])
    op = torch.ops.aten.native_layer_norm_backward
    return op(x, x, [x.shape[1]], moment, moment, w, w, [True] * 3)


def _rms_norm_backward(x: torch.Tensor) -> Any:
    rstd, w = x.new_empty(len(x), 1, dtype=torch.float32), x.new_empty(x.shape[1])
    return torch.ops.aten._fused_rms_norm_backward(x, x, [x.shape[1]], rstd, w, [True] * 2)


CALLS: dict[str, tuple[Callable[[torch.Tensor], Any], Shapes]] = {
    "amax over the first dimension": (lambda x: x.amax(0), FIRST),
    "any over the first dimension": (lambda x: x.any(0), FIRST),
    "any of one row": (lambda x: x.any(), ROW),
    "argmax over the first dimension": (lambda x: x.argmax(0), FIRST),
    "topk of 2 along the first dimension": (lambda x: x.topk(2, 0), FIRST),
    "topk of 2 in rows of at most 8": (lambda x: x.topk(2), SHORT),
    "topk of 16": (lambda x: x.topk(16), MANY),
    "topk of 50": (lambda x: x.topk(50), MANY),
    "topk of 50 along the first dimension": (lambda x: x.topk(50, 0), FIRST),
    "topk of 50 in one row": (lambda x: x.topk(50), ROW),
    "sort of one row": (lambda x: x.sort(), ROW),
    "median of one row": (lambda x: x.median(-1), ROW),
    "norm over the first dimension": (lambda x: x.norm(dim=0), FIRST),
    "argmax of rows of at most 8": (lambda x: x.argmax(-1), SHORT),
    "layer_norm of rows of at most 65": (
        lambda x: F.layer_norm(x, x.shape[-1:]),
        (*SHORT, (8191, 65)),
    ),
    "layer_norm of rows of 66 to 257": (
        lambda x: F.layer_norm(x, x.shape[-1:]),
        ((8192, 96), (16_381, 127), (8192, 191), (8192, 257)),
    ),
    "reversed dimensions, copied": (lambda x: x.permute(2, 1, 0).contiguous(), REVERSED),
    "nansum": (lambda x: x.nansum(-1), MANY),
    "var over the first dimension": (lambda x: x.var(0), FIRST),
    "var of one row": (lambda x: x.var(), ROW),
    "softmax of one row": (lambda x: x.softmax(-1), ROW),
    "cummax": (lambda x: x.cummax(-1), MANY),
    "cummax along the first dimension": (lambda x: x.cummax(0), MANY),
    "cumprod along the first dimension": (lambda x: x.cumprod(0), MANY),
    "cumsum of one row": (lambda x: x.cumsum(-1), ROW),
    "logcumsumexp": (lambda x: x.logcumsumexp(-1), MANY),
    "interpolation of planes of 7 x 7 or 14 x 14": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        ((8, 128, 14, 14), (8, 320, 7, 7)),
    ),
    "max_pool2d of 3 x 3": (lambda x: F.max_pool2d(x, 3, 2, 1), IMAGES),
    "max_pool2d of 3 planes": (lambda x: F.max_pool2d(x, 3, 2, 1), ((1, 3, 112, 112),)),
    "avg_pool2d of 3 x 3": (lambda x: F.avg_pool2d(x, 3, 1, 1), ((8, 128, 56, 56),)),
    "depthwise convolution of 16 to 96 channels": (_depthwise, FEW_CHANNELS),
    "gradient of layer_norm": (_layer_norm_backward, GRADIENTS),
    "gradient of rms_norm": (_rms_norm_backward, GRADIENTS),
    "random normal numbers in 16 bits": (torch.randn_like, MANY),
    "floor_divide": (lambda x: x.floor_divide(3.0), MANY),
    "fmod": (lambda x: x.fmod(x), MANY),
    "remainder": (lambda x: x.remainder(x), MANY),
    "atan2": (lambda x: x.atan2(x), MANY),
    "searchsorted": (lambda x: torch.searchsorted(x, x), LISTS),
    "tril of narrow matrices": (lambda x: x.tril(), NARROW),
    "mv of narrow matrices": (lambda x: x @ x.new_empty(x.shape[1]), ((8192, 64), (16_381, 127))),
    "scatter along the first dimension": (
        lambda x: x.scatter(0, x.new_empty(x.shape, dtype=torch.int64), x),
        MANY,
    ),
    "gather in rows of 64": (
        lambda x: x.gather(1, x.new_empty(x.shape, dtype=torch.int64)),
        ((8192, 64),),
    ),
    "reversed rows": (lambda x: x.flip(-1), MANY),
    "gather along the first dimension": (
        lambda x: x.gather(0, x.new_empty(x.shape, dtype=torch.int64)),
        MANY,
    ),
    "std over a middle dimension": (lambda x: x.std(1), ((64, 1000, 33),)),
}


def documented() -> Mapping[str, float]:
    section = TIMING.read_text().split("## Above the limits by size")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| [^|]{20,} \|$", section, re.MULTILINE)
    return {name.strip(): float(times.replace(",", "")) for name, times in rows}


def times_of_limit(call: Callable[[torch.Tensor], Any], shapes: Shapes) -> float:
    """The most, of chips, dtypes and shapes; beside starts and the filling of pipelines."""
    most = 0.0
    for name in ("trn1", "trn3"):
        chip = get_chip(name)
        rate = chip.hbm_bytes_per_s_per_core() * chip.check_lnc(None)
        for dtype in DTYPES:
            for shape in shapes:
                x = empty(*shape, dtype=dtype)
                tensors = [x, *(t for t in tree_leaves(call(x)) if isinstance(t, torch.Tensor))]
                limit_us = sum(t.numel() * t.element_size() for t in tensors) / rate * 1e6
                made = torch_trn_emu.estimate(call, x, chip=name)
                starts = chip.launch.kernel_overhead_s * 1e6 + PIPELINE_US
                most = max(most, (made.device_us - starts) / limit_us)
    return most


@pytest.mark.parametrize("name", CALLS)
def test_times_are_as_far_from_the_limits_as_documented(name: str) -> None:
    said, found = documented()[name], times_of_limit(*CALLS[name])
    assert 0.6 * said < found < said


def test_every_reason_is_checked() -> None:
    assert set(documented()) == set(CALLS)
