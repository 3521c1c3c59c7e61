"""Pooling over windows, forward and backward."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.isa import fits
from torch_trn_emu.kernels import windows
from torch_trn_emu.kernels.pooling import tiles
from torch_trn_emu.kernels.windows import Axis
from torch_trn_emu.pricing import price_call

from .calls import TARGET, call_of, lowered, random, run

aten = torch.ops.aten
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SIDE = st.integers(3, 13)


@pytest.fixture(
    params=[(16 * 1024, 160 * 1024), (200, 160 * 1024), (200, 300)],
    ids=["whole", "strips", "windows"],
)
def tile_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of a few rows, which larger planes need, and windows of them, which wide ones need."""
    monkeypatch.setattr(tiles, "TILE_BYTES", request.param[0])
    monkeypatch.setattr(windows, "ROW_BYTES", request.param[1])


WINDOWS = [
    # sizes, kernel, stride, padding, dilation, ceil_mode
    ((12, 13), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((9, 7), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((11, 12), (3, 2), (1, 2), (1, 1), (2, 1), False),
    ((16, 5), (2, 3), (3, 1), (1, 0), (1, 2), False),
    ((1, 1), (1, 1), (1, 1), (0, 0), (1, 1), False),
]


def _keeps_maxima(op: Any, back: Any, x: torch.Tensor, window: tuple[Any, ...]) -> None:
    """The largest values, where they were, and their gradients."""
    y, index = op(x, *window)
    got = run(lowered(call_of(op, x, *window)), {"x": x})
    np.testing.assert_array_equal(got["y"].reshape(y.shape), y)
    np.testing.assert_array_equal(got["indices"].reshape(y.shape), index)
    g = random(*y.shape)
    got = run(lowered(call_of(back, g, x, *window, index)), {"g": g, "indices": index})
    np.testing.assert_allclose(got["dx"].reshape(x.shape), back(g, x, *window, index), **CLOSE)


def _keeps_means(op: Any, back: Any, x: torch.Tensor, window: tuple[Any, ...], sizes: Any) -> None:
    """The values, and their gradients by a call with `sizes` after the tensors."""
    y = op(x, *window)
    got = run(lowered(call_of(op, x, *window)), {"x": x})
    np.testing.assert_allclose(got["y"].reshape(y.shape), y, **CLOSE)
    g = random(*y.shape)
    got = run(lowered(call_of(back, g, x, *sizes)), {"g": g})
    np.testing.assert_allclose(got["dx"].reshape(x.shape), back(g, x, *sizes), **CLOSE)


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_max_pool(case: tuple[tuple[int, ...], ...]) -> None:
    size, kernel, stride, padding, dilation, ceil_mode = case
    window = (kernel, stride, padding, dilation, ceil_mode)
    _keeps_maxima(
        aten.max_pool2d_with_indices.default,
        aten.max_pool2d_with_indices_backward.default,
        random(2, 70, *size),
        window,
    )


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", WINDOWS[:2], ids=str)
def test_average_pool(case: tuple[tuple[int, ...], ...], padded: bool, divisor: int | None) -> None:
    size, kernel, stride, padding, _, ceil_mode = case
    x = random(2, 70, *size)
    window = (kernel, stride, padding, ceil_mode, padded, divisor)
    op, back = aten.avg_pool2d.default, aten.avg_pool2d_backward.default
    _keeps_means(op, back, x, window, window)


@pytest.mark.parametrize("planes", [1, 3, 43, 65])
@pytest.mark.parametrize("window", [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (0, 1))], ids=str)
def test_bands_of_few_planes(planes: int, window: tuple[Any, ...]) -> None:
    x = random(planes, 1, 90, 40)
    maxima = aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default
    _keeps_maxima(*maxima, x, (*window, (1, 1), False))
    means = (*window, False, False, None)
    _keeps_means(aten.avg_pool2d.default, aten.avg_pool2d_backward.default, x, means, means)


def test_few_planes_take_a_share_of_the_time() -> None:
    """Bands of them fill the partitions; a plane more than a tile has costs a plane."""
    op, window = aten.max_pool2d_with_indices.default, ((3, 3), (2, 2), (1, 1), (1, 1), False)

    def took(planes: int) -> float:
        x = torch.empty(1, planes, 224, 224, device="meta")
        return float(price_call(call_of(op, x, *window), TARGET).seconds)

    assert took(1) < took(128) / 10
    assert took(31) < took(128) / 2.5
    for fewer, more in ((31, 33), (64, 65), (128, 129)):
        assert took(more) < 1.2 * took(fewer)


def test_adaptive_windows_of_one_size_take_no_longer() -> None:
    """Than those of several sizes, for which a size more makes them."""

    def took(*size: int) -> float:
        x = torch.empty(8, 512, *size, device="meta")
        return float(
            price_call(call_of(aten._adaptive_avg_pool2d.default, x, (2, 2)), TARGET).seconds
        )

    for height, width in ((14, 14), (14, 112), (28, 28)):
        assert took(height, width) < 1.1 * took(height + 1, width)


@settings(max_examples=8, deadline=None)
@given(height=SIDE, width=SIDE, rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_adaptive_average(height: int, width: int, rows: int, columns: int) -> None:
    x = random(2, 3, height, width)
    op, back = aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d_backward.default
    _keeps_means(op, back, x, ((rows, columns),), ())


@pytest.mark.parametrize(
    ("size", "out"),
    [((301, 210), (7, 4)), ((40, 3001), (9, 2)), ((1101, 60), (2, 3)), ((6, 9001), (3, 2))],
)
def test_adaptive_average_of_planes_that_sbuf_does_not_hold(size, out) -> None:
    x = random(1, 2, *size)
    op, back = aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d_backward.default
    _keeps_means(op, back, x, (out,), ())
    grad = torch.empty(1, 2, *out)
    for call in (call_of(op, x, out), call_of(back, grad, x)):
        assert all(fits(program, TARGET.chip) for program in lowered(call))


def test_other_ranks() -> None:
    x = random(2, 3, 20)
    y = aten.max_pool1d.default(x, 3, 2, 1)
    got = run(lowered(call_of(aten.max_pool1d.default, x, (3,), (2,), (1,))), {"x": x})
    np.testing.assert_array_equal(got["y"].reshape(y.shape), y)
    x = random(2, 3, 5, 6, 7)
    window = ((2, 3, 2), (2, 1, 2), (1, 1, 0), (1, 1, 1), False)
    forward = aten.max_pool3d_with_indices.default
    _keeps_maxima(forward, aten.max_pool3d_with_indices_backward.default, x, window)
    window = ((2, 3, 2), (2, 1, 2), (1, 1, 0), False, False, None)
    op, back = aten.avg_pool3d.default, aten.avg_pool3d_backward.default
    _keeps_means(op, back, x, window, window)


@given(
    size=st.integers(1, 40), kernel=st.integers(1, 6), stride=st.integers(1, 4),
    padding=st.integers(0, 3), dilation=st.integers(1, 3), first=st.integers(0, 9),
)  # fmt: skip
def test_counts_the_taps_inside(
    size: int, kernel: int, stride: int, padding: int, dilation: int, first: int
) -> None:
    axis = Axis(
        size=size, out=(size + 2 * padding) // stride + 1, kernel=kernel, stride=stride,
        padding=padding, dilation=dilation,
    )  # fmt: skip
    inside = [
        sum(0 <= axis.source(o, k) < size for k in range(kernel)) for o in range(first, axis.out)
    ]
    runs = axis.counts(first, len(inside))
    assert [taps for taps, many in runs for _ in range(many)] == inside
    assert all(a[0] != b[0] for a, b in pairwise(runs))


@pytest.mark.parametrize("axis", [-3, -2, -1])
@pytest.mark.parametrize("op", [aten.max_pool3d_with_indices, aten.avg_pool3d, aten.conv3d])
def test_prices_an_axis_of_any_length_at_once(op: Any, axis: int) -> None:
    """A program holds a bounded number of strips; beyond, the price is inferred."""
    shape = [1, 1, 1, 1, 1]
    shape[axis] = 2**24 + 1
    x = torch.empty(shape, device="meta")
    given = (torch.empty(1, 1, 1, 1, 1, device="meta"),) if op is aten.conv3d else ((1, 1, 1),)
    price = price_call(call_of(op.default, x, *given), TARGET)
    assert price.seconds > 2**24 * 4 / 4.9e12  # what memory needs to read it
