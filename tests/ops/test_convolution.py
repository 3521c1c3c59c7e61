"""Convolutions and both gradients, with strides, paddings, dilations, groups and bias."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from torch_trn_emu.counters import fold
from torch_trn_emu.kernels import windows
from torch_trn_emu.kernels.convolution import depthwise, few_channels, filters, input, weight
from torch_trn_emu.pricing import price_call
from torch_trn_emu.timing import price

from .calls import CHIP, TARGET, call_of, lowered, random, run

aten = torch.ops.aten
CLOSE = {"rtol": 1e-3, "atol": 1e-3}

CASES: dict[str, dict[str, Any]] = {
    #                  input, filters, kernel and what differs from stride 1 without padding
    "plain": {"x": (2, 5, 9, 8), "f": 7, "k": (3, 3)},
    "padded": {"x": (2, 5, 9, 8), "f": 7, "k": (3, 3), "padding": (1, 1), "bias": True},
    "strided": {"x": (1, 140, 11, 9), "f": 6, "k": (3, 2), "stride": (2, 3), "padding": (1, 0)},
    "dilated": {"x": (1, 70, 12, 11), "f": 5, "k": (3, 3), "dilation": (2, 1), "padding": (3, 2)},
    "first layer": {"x": (1, 3, 40, 39), "f": 9, "k": (7, 7), "stride": (2, 2), "padding": (3, 3)},
    "pointwise": {"x": (3, 130, 7, 7), "f": 140, "k": (1, 1), "bias": True},
    "pointwise strided": {"x": (2, 30, 7, 7), "f": 20, "k": (1, 1), "stride": (2, 2)},
    "wide": {"x": (1, 2, 5, 530), "f": 3, "k": (3, 3), "padding": (1, 1)},
    "tall": {"x": (1, 66, 70, 20), "f": 3, "k": (3, 3), "padding": (1, 1)},
    "grouped": {"x": (2, 12, 8, 8), "f": 6, "k": (3, 3), "groups": 3, "padding": (1, 1)},
    "depthwise": {"x": (2, 130, 8, 9), "f": 130, "k": (3, 3), "groups": 130, "padding": (1, 1)},
    "multiplied": {"x": (2, 4, 8, 9), "f": 8, "k": (3, 3), "groups": 4, "stride": (2, 2),
                   "padding": (1, 0), "bias": True},
    "few channels": {"x": (5, 3, 60, 9), "f": 6, "k": (3, 3), "groups": 3, "padding": (1, 1),
                     "bias": True},
    "in groups": {"x": (3, 43, 30, 8), "f": 43, "k": (2, 3), "groups": 43, "stride": (2, 1)},
    "one channel": {"x": (9, 1, 28, 28), "f": 3, "k": (3, 5), "padding": (1, 1), "bias": True},
    "far padding": {"x": (1, 2, 2, 3), "f": 2, "k": (2, 1), "groups": 2, "stride": (2, 1),
                    "padding": (0, 2)},
    "line": {"x": (2, 5, 20), "f": 7, "k": (4,), "stride": (2,), "padding": (2,), "bias": True},
    "volume": {"x": (1, 3, 5, 6, 7), "f": 4, "k": (2, 3, 3), "stride": (2, 1, 2),
               "padding": (1, 1, 0)},
    "deep padding": {"x": (1, 2, 3, 3), "f": 2, "k": (2, 2), "padding": (4, 4), "stride": (3, 3)},
}  # fmt: skip


def _window(case: dict[str, Any], transposed: bool = False) -> tuple[Any, ...]:
    rank = len(case["k"])
    one, zero = (1,) * rank, (0,) * rank
    more = case.get("output_padding", zero)
    return (case.get("stride", one), case.get("padding", zero), case.get("dilation", one),
            transposed, more, case.get("groups", 1))  # fmt: skip


def _check(case: dict[str, Any], transposed: bool = False) -> None:
    x, groups = random(*case["x"]), case.get("groups", 1)
    shape = (
        (case["f"], x.shape[1] // groups) if not transposed else (x.shape[1], case["f"] // groups)
    )
    w = random(*shape, *case["k"])
    bias = random(case["f"]) if case.get("bias") else None
    window = _window(case, transposed)
    args = [t.double() if t is not None else None for t in (x, w, bias)]
    y = aten.convolution.default(*args, *window)
    call = call_of(aten.convolution.default, x, w, bias, *window)
    feeds = {"in": x, "g": x, "weight": w, "bias": bias if bias is not None else x}
    got = run(lowered(call), feeds)
    np.testing.assert_allclose(got["dx" if transposed else "out"].reshape(y.shape), y, **CLOSE)
    g = random(*y.shape)
    mask = [True, True, bias is not None]
    back = aten.convolution_backward.default
    sizes = [case["f"]] if bias is not None else None
    expected = back(g.double(), args[0], args[1], sizes, *window, mask)
    programs = lowered(call_of(back, g, x, w, sizes, *window, mask))
    got_x = run(programs[:1], {"g": g, "in": g, "weight": w})["out" if transposed else "dx"]
    np.testing.assert_allclose(got_x.reshape(x.shape), expected[0], **CLOSE)
    # The transposed one's input takes the place of the gradient.
    got_w = run(programs[1:2], {"g": x, "x": g} if transposed else {"g": g, "x": x})["dw"]
    np.testing.assert_allclose(got_w.reshape(w.shape), expected[1], **CLOSE)
    if bias is not None:
        np.testing.assert_allclose(run(programs[2:], {"g": g})["db"], expected[2], **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_convolution(name: str) -> None:
    _check(CASES[name])


@pytest.mark.parametrize(
    "name", ["plain", "padded", "strided", "grouped", "line", "volume", "wide"]
)
def test_transposed(name: str) -> None:
    _check(CASES[name], transposed=True)


def test_few_channels_take_a_share_of_the_time() -> None:
    """Their images and bands of rows fill the partitions."""

    def took(channels: int, batch: int) -> float:
        x, w = (
            torch.empty(s, device="meta") for s in ((batch, channels, 56, 56), (channels, 1, 3, 3))
        )
        window = _window({"k": (3, 3), "padding": (1, 1), "groups": channels})
        return float(
            price_call(call_of(aten.convolution.default, x, w, None, *window), TARGET).seconds
        )

    for batch in (1, 8):
        assert took(3, batch) < took(128, batch) / 3
        for fewer, more in ((31, 33), (64, 65), (128, 129)):
            assert took(more, batch) < 1.2 * took(fewer, batch) + 4e-6


@pytest.mark.parametrize("name", ["padded", "strided", "tall", "depthwise", "grouped", "in groups"])
def test_in_small_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large sizes need: blocks of filters, strips of rows."""
    monkeypatch.setattr(filters, "WEIGHT_BYTES", 256)
    monkeypatch.setattr(input, "WEIGHT_BYTES", 256)
    monkeypatch.setattr(weight, "WEIGHT_BYTES", 256)
    monkeypatch.setattr(weight, "PIXEL_TILES", 1)
    monkeypatch.setattr(few_channels, "STRIP_BYTES", 400)
    monkeypatch.setattr(few_channels, "TOGETHER", 2)
    monkeypatch.setattr(depthwise, "TILE_BYTES", 200)
    _check(CASES[name])


@pytest.mark.parametrize(
    "name", ["depthwise", "multiplied", "few channels", "in groups", "far padding", "deep padding"]
)
def test_windows_of_wide_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "TILE_BYTES", 200)
    monkeypatch.setattr(windows, "ROW_BYTES", 150)
    case = CASES[name]
    _check({**case, "groups": case["x"][1], "f": case["x"][1] * (case["f"] // case["x"][1] or 1)})


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_convolution(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 2))
    each = st.integers(1, 3)
    window = {
        name: tuple(draw(each if name != "padding" else st.integers(0, 2)) for _ in range(rank))
        for name in ("k", "stride", "padding", "dilation")
    }
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    channels = groups * draw(st.integers(1, 3))
    least = [(k - 1) * d + 1 for k, d in zip(window["k"], window["dilation"], strict=True)]
    size = [n + draw(st.integers(0, 7)) for n in least]
    case = window | {"x": (draw(st.integers(1, 3)), channels, *size), "groups": groups,
                     "f": groups * draw(st.integers(1, 3)), "bias": False}  # fmt: skip
    transposed = draw(st.booleans())
    if transposed:
        sides = zip(size, *(window[n] for n in ("stride", "padding")), least, strict=True)
        assume(all((n - 1) * s - 2 * p + span > 0 for n, s, p, span in sides))
    _check(case, transposed=transposed)


def test_prices_filters_of_thousands_of_taps_at_once() -> None:
    """A program holds a bounded number of products; beyond, the price is inferred."""
    x = torch.empty(1, 1, 15, 13, 13, device="meta")
    weight = torch.empty(1, 1, 16, 16, 16, device="meta")
    window = ([16] * 3, [7] * 3, [1] * 3, True, [10, 2, 2], 1)
    call = call_of(aten.convolution.default, x, weight, None, *window)
    assert price_call(call, TARGET).status == "inferred"


def test_few_channels_turn_once_a_column_of_the_filter() -> None:
    """Two images, 112 tiles of 112 pixels each: 7 turns of 21 rows, one of the gradient, a product.

    A turn takes 64 cycles, two at once, the product the 147 of its columns. [isa] [guide]
    """
    x, g, w = random(2, 3, 224, 224), random(2, 64, 112, 112), random(64, 3, 7, 7)
    window = ((2, 2), (3, 3), (1, 1), False, (0, 0), 1, [False, True, False])
    call = call_of(aten.convolution_backward.default, g, x, w, None, *window, results=(w,))
    (program,) = lowered(replace(call, policy="bf16"))
    totals = fold(price(program, CHIP))
    tiles = 2 * 112
    assert totals["matmul_instruction_count"] == tiles
    cycles = tiles * (8 * 64 / 2 + 147)
    worked = totals["tensor_engine_active_time"] - totals["tensor_engine_throttled_time"]
    assert worked == pytest.approx(cycles / 2.4e9, rel=0.01)
    # Every row of the filter brings its rows: 3 of 7 miss one row above, and 2 below.
    rows = 7 * 112 - (2 + 1 + 1) - (1 + 1)
    assert totals["hbm_read_bytes"] == pytest.approx(
        (2 * 3 * rows * 224 + 2 * 64 * 112 * 112) * 4, rel=0.01
    )
