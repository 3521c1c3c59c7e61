"""Planes resampled by products with matrices of weights, and their gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from torch_trn_emu.ops import interpolation

from .calls import call_of, lowered, random, run

aten = torch.ops.aten
SIZES = [((5, 7), (10, 14)), ((9, 8), (4, 13)), ((140, 9), (150, 21)), ((3, 300), (6, 550))]
MODES: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear"},
    "aligned": {"mode": "bilinear", "align_corners": True},
    "smooth": {"mode": "bilinear", "antialias": True},
    "bicubic": {"mode": "bicubic"},
}


def _matrix(size: int, out: int, **how: Any) -> torch.Tensor:
    """[size, out]: what a line of ones and zeros becomes, one for each of its elements."""
    lines = torch.eye(size)[:, None, None, :].expand(size, 1, 1, size)
    return interpolate(lines, (1, out), **how)[:, 0, 0, :]


def _op(how: dict[str, Any]) -> tuple[Any, Any, bool]:
    """Forward and backward overloads, and whether corners are aligned."""
    name = f"upsample_{how['mode']}2d"
    name = f"_{name}_aa" if how.get("antialias") else name
    aligned = bool(how.get("align_corners"))
    return getattr(aten, name).default, getattr(aten, f"{name}_backward").default, aligned


@pytest.mark.parametrize(("size", "out"), SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_interpolation(mode: str, size: tuple[int, int], out: tuple[int, int]) -> None:
    _compare(MODES[mode], 6, size, out)


@pytest.mark.parametrize(("size", "out"), SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_windows_of_large_planes(
    mode: str, size: tuple[int, int], out: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpolation, "HELD_BYTES", 1500)
    monkeypatch.setattr(interpolation, "MOST_WINDOW", 40)
    monkeypatch.setattr(interpolation, "LEAST_WINDOW", 12)
    _compare(MODES[mode], 6, size, out)


@pytest.mark.parametrize("planes", [18, 40, 300])
def test_planes_that_lie_beside_each_other(planes: int) -> None:
    _compare(MODES["bilinear"], planes, (5, 9), (10, 18))


def _compare(how: dict[str, Any], planes: int, size: tuple[int, int], out: tuple[int, int]) -> None:
    forward, backward, aligned = _op(how)
    x, g = random(2, planes // 2, *size), random(2, planes // 2, *out)
    high, wide = (_matrix(n, m, **how) for n, m in zip(size, out, strict=True))
    feeds = {"in": x, "high weights": high, "wide weights": wide}
    y = forward(x, out, aligned)
    got = run(lowered(call_of(forward, x, out, aligned)), feeds)["out"]
    np.testing.assert_allclose(got.reshape(y.shape), y, rtol=1e-4, atol=1e-5)
    dx = backward(g, out, x.shape, aligned)
    feeds = {"in": g, "high weights": high.T, "wide weights": wide.T}
    got = run(lowered(call_of(backward, g, out, x.shape, aligned)), feeds)["out"]
    np.testing.assert_allclose(got.reshape(dx.shape), dx, rtol=1e-4, atol=1e-4)


def test_nearest_by_any_factor_and_its_gradient() -> None:
    x, size, out = random(2, 3, 5, 7), (5, 7), (8, 12)
    high, wide = (_matrix(n, m, mode="nearest") for n, m in zip(size, out, strict=True))
    op, back = aten.upsample_nearest2d.default, aten.upsample_nearest2d_backward.default
    got = run(lowered(call_of(op, x, out)), {"in": x, "high weights": high, "wide weights": wide})
    np.testing.assert_allclose(got["out"].reshape(2, 3, *out), op(x, out))
    g = random(2, 3, *out)
    feeds = {"in": g, "high weights": high.T, "wide weights": wide.T}
    got = run(lowered(call_of(back, g, out, x.shape)), feeds)
    expected = back(g, out, x.shape)
    np.testing.assert_allclose(got["out"].reshape(x.shape), expected, rtol=1e-5, atol=1e-5)


def test_tiles_off_the_diagonal_are_left_out() -> None:
    """Of four parts of 128 inputs a half of the outputs needs two, and a bit of a third."""
    x = torch.empty(1, 1, 512, 512, device="meta")
    (program,) = lowered(call_of(aten.upsample_bilinear2d.default, x, (1024, 1024), False))
    opcodes = [i.opcode for i in program.instructions()]
    height, width = 4 * 2 * 3, 8 * 2 * 3  # tiles of the result, two banks of each, three parts
    assert opcodes.count("nc_matmul") == height + width
