"""Patches cut out of planes, and added back."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from torch_trn_emu.counters import fold
from torch_trn_emu.kernels import windows
from torch_trn_emu.ops import im2col
from torch_trn_emu.timing import price

from .calls import CHIP, call_of, lowered, random, run

aten = torch.ops.aten
Window = tuple[tuple[int, int], ...]

WINDOWS: list[tuple[tuple[int, int], Window]] = [
    # size, (kernel, dilation, padding, stride)
    ((12, 13), ((3, 3), (1, 1), (1, 1), (1, 1))),
    ((16, 8), ((4, 4), (1, 1), (0, 0), (4, 4))),
    ((11, 12), ((3, 2), (2, 1), (1, 0), (1, 2))),
    ((9, 10), ((2, 3), (1, 2), (0, 2), (3, 1))),
    ((1, 1), ((1, 1), (1, 1), (0, 0), (1, 1))),
]


@pytest.fixture(
    params=[(32 * 1024, 160 * 1024), (600, 160 * 1024), (600, 500)],
    ids=["whole", "strips", "windows"],
)
def tile_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(im2col, "TILE_BYTES", request.param[0])
    monkeypatch.setattr(windows, "ROW_BYTES", request.param[1])


def _check(size: tuple[int, int], window: Window) -> None:
    x = random(2, 70, *size)
    cut = aten.im2col.default(x, *window)
    got = run(lowered(call_of(aten.im2col.default, x, *window)), {"in": x})["patches"]
    np.testing.assert_array_equal(got.reshape(cut.shape), cut)
    g = random(*cut.shape)
    whole = aten.col2im.default(g, size, *window)
    got = run(lowered(call_of(aten.col2im.default, g, size, *window)), {"patches": g})["out"]
    np.testing.assert_allclose(got.reshape(whole.shape), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_patches(case: tuple[tuple[int, int], Window]) -> None:
    _check(*case)


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=10, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)), kernel=PAIR, dilation=PAIR, stride=PAIR,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)  # fmt: skip
def test_any_patches(
    size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int],
) -> None:  # fmt: skip
    sides = zip(size, kernel, dilation, padding, strict=True)
    assume(all(n + 2 * p >= (k - 1) * d + 1 for n, k, d, p in sides))
    _check(size, (kernel, dilation, padding, stride))


def test_memory_is_read_and_written_once() -> None:
    """Patches of 4 x 4 that do not overlap hold what the planes hold."""
    x = random(4, 32, 16, 16)
    (program,) = lowered(call_of(aten.im2col.default, x, (4, 4), (1, 1), (0, 0), (4, 4)))
    totals = fold(price(program, CHIP))
    assert totals["hbm_read_bytes"] == totals["hbm_write_bytes"] == x.numel() * 4
