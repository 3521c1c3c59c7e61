"""The kernels of benchmarks/kernels compute on the machine what numpy computes."""

import numpy as np
import pytest

from benchmarks.kernels.convolution import conv2d
from benchmarks.kernels.matmul import naive_matmul
from benchmarks.kernels.normalization import rms_norm
from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import validate

TRN2 = get_chip("trn2")
RNG = np.random.default_rng(2)


def _data(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_naive_matmul() -> None:
    m, k, n = 256, 256, 1024
    lhs, rhs = _data(k, m), _data(k, n)
    program = naive_matmul(m, k, n, dtype="float32")
    out = Machine(TRN2).run(program, {"lhs": lhs, "rhs": rhs})["out"]
    bound = (k + 1) * 2.0**-24 * (abs(lhs.T).astype(np.float64) @ abs(rhs))
    assert (abs(out - lhs.T.astype(np.float64) @ rhs) <= bound).all()


def test_rms_norm() -> None:
    x, w = _data(200, 96), _data(1, 96)
    program = rms_norm(200, 96, chip=TRN2, dtype="float32")
    validate(program, TRN2)
    out = Machine(TRN2).run(program, {"in": x, "weight": w})["out"]
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(out, expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("batch", "c", "size", "f", "kernel"), [(1, 3, 9, 5, 3), (2, 130, 8, 140, 2), (1, 4, 40, 4, 1)]
)
def test_conv2d(batch: int, c: int, size: int, f: int, kernel: int) -> None:
    x, w = _data(batch, c, size, size), _data(c, kernel, kernel, f)
    program = conv2d(batch, c, size, size, f, kernel, chip=TRN2, dtype="float32")
    validate(program, TRN2)
    out = Machine(TRN2).run(program, {"in": x, "weight": w})["out"]
    patches = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    expected = np.einsum("bcyxij,cijf->bfyx", patches.astype(np.float64), w.astype(np.float64))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
