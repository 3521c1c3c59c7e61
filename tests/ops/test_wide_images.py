"""Images thousands of elements wide have programs that SBUF holds, priced in proportion."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.isa import Program, fits, validate
from torch_trn_emu.ops import OPS
from torch_trn_emu.timing import price

from .calls import call_of

aten = torch.ops.aten
WIDTHS = (2000, 3000, 4001, 9001)


def _x(width: int, height: int = 64) -> torch.Tensor:
    return torch.empty(1, 3, height, width, device="meta")


def _resized(width: int) -> tuple[Any, ...]:
    return aten.upsample_bilinear2d.default, _x(width), (128, 2 * width), False


def _resized_back(width: int) -> tuple[Any, ...]:
    sizes = ((128, 2 * width), (1, 3, 64, width))
    return aten.upsample_bilinear2d_backward.default, _x(2 * width, 128), *sizes, False


def _normed_back(width: int) -> tuple[Any, ...]:
    x, c = _x(width, 9000), torch.empty(3, device="meta")
    wanted = [True, True, True]
    return aten.native_batch_norm_backward.default, x, x, c, c, c, c, c, True, 1e-5, wanted


def _normed(width: int) -> tuple[Any, ...]:
    c = torch.empty(3, device="meta")
    return aten.native_batch_norm.default, _x(width, 9000), c, c, c, c, True, 0.1, 1e-5


def _depthwise(width: int) -> tuple[Any, ...]:
    filters = torch.empty(3, 1, 3, 3, device="meta")
    window = ((1, 1), (1, 1), (1, 1), False, (0, 0), 3)
    return aten.convolution.default, _x(width), filters, None, *window


def _depthwise_back(width: int) -> tuple[Any, ...]:
    filters = torch.empty(3, 1, 3, 3, device="meta")
    window = ((1, 1), (1, 1), (1, 1), False, (0, 0), 3)
    wanted = [True, True, False]
    return aten.convolution_backward.default, _x(width), _x(width), filters, None, *window, wanted


WINDOW = ((3, 3), (1, 1), (1, 1), (1, 1))  # kernel, dilation, padding, stride of patches
MEANS = ((5, 5), (1, 1), (2, 2), False, False)
CALLS: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "largest": lambda w: (
        aten.max_pool2d_with_indices.default, _x(w), (3, 3), (2, 2), (1, 1)
    ),
    "mean": lambda w: (aten.avg_pool2d.default, _x(w), *MEANS),
    "mean back": lambda w: (aten.avg_pool2d_backward.default, _x(w), _x(w), *MEANS, None),
    "patches": lambda w: (aten.im2col.default, _x(w), *WINDOW),
    "patches back": lambda w: (
        aten.col2im.default, torch.empty(1, 27, 64 * w, device="meta"), (64, w), *WINDOW
    ),
    "depthwise": _depthwise,
    "depthwise back": _depthwise_back,
    "resized": _resized,
    "resized back": _resized_back,
    "adaptive": lambda w: (aten._adaptive_avg_pool2d.default, _x(w), (3, 5)),
    "adaptive back": lambda w: (
        aten._adaptive_avg_pool2d_backward.default, _x(5, 3), _x(w)
    ),
    "normed": _normed,
    "normed back": _normed_back,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wide_images(name: str) -> None:
    """From a width to the next, time grows as the width does: a fifth more at most."""
    for chip in map(get_chip, ("trn1", "trn3")):
        took = []
        for width in WIDTHS:
            call = call_of(*CALLS[name](width))
            programs = OPS[call.name].lower(call, Target(chip, 1))
            assert isinstance(programs, tuple)
            for program in programs:
                assert isinstance(program, Program)
                assert fits(program, chip)
                validate(program, chip)
            start_s = chip.launch.kernel_overhead_s * len(programs)
            took.append((sum(price(p, chip).total_s for p in programs) - start_s) / width)
        assert all(0.7 < b / a < 1.2 for a, b in pairwise(took)), took
