"""A few rows by MX codes, at every level, against `gemm` of the values by definition."""

import numpy as np
import pytest
from numerics_library import ELEMENTS, Mx, Numerics

ROWS = (1, 2, 3, 4, 5, 13, 16)
elements = pytest.mark.parametrize("element", ELEMENTS)


def bytes_of(element: str, k: int) -> int:
    return (k + 1) // 2 if element == "float4_e2m1fn" else k


def check(each_isa: Numerics, element: str, a: np.ndarray, codes: np.ndarray, scales: np.ndarray):
    k = a.shape[1]
    values = each_isa.dequantize(
        codes, scales, 1, Mx(element=element), (len(codes), k), np.float32, reference=True
    )
    for m in ROWS:
        if m > 4 and len(codes) <= 8:
            continue  # gemm multiplies the transposes, which adds in another order
        got = each_isa.gemm_stored(a[:m], codes, scales, element)
        wanted = each_isa.gemm(a[None, :m], values.T[None])[0]
        np.testing.assert_array_equal(got, wanted, f"{m} rows")


@elements
def test_every_code_is_read_under_every_scale(each_isa, element):
    """Rows of a single 1 pick one value of each column; zeros by infinity are NaN."""
    a = np.eye(max(ROWS), 96, k=7, dtype=np.float32)
    codes = np.arange(256, dtype=np.uint8).reshape(-1, bytes_of(element, 32))
    codes = np.tile(np.tile(codes, 3), (256, 1))
    scales = np.arange(256, dtype=np.uint8).repeat(len(codes) // 256)
    check(each_isa, element, a, codes, np.stack([scales, 255 - scales, scales], 1))


@elements
@pytest.mark.parametrize("k", [32, 34, 96, 512, 600, 1056, 2560])
@pytest.mark.parametrize("n", [1, 16, 37])
def test_sums_are_those_of_the_product_of_values(each_isa, element, n, k):
    rng = np.random.default_rng(n * k)
    a = rng.normal(size=(max(ROWS), k)).astype(np.float32)
    codes = rng.integers(0, 256, (n, bytes_of(element, k)), np.uint8)
    scales = rng.integers(100, 140, (n, (k + 31) // 32)).astype(np.uint8)
    if element.startswith("float8"):
        codes[codes % 128 > 0x7B] = 0  # numbers alone, but for one column
        codes[n // 2, k // 3] = 0x7F
    check(each_isa, element, a, codes, scales)
    scales[n // 2, -1] = 255
    scales[0] = 0
    check(each_isa, element, a * np.float32(1e-3), codes, scales)


def test_threads_do_not_change_sums(each_isa):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 1024)).astype(np.float32)
    codes = rng.integers(0, 256, (300, 512), np.uint8)
    scales = rng.integers(100, 140, (300, 32)).astype(np.uint8)
    one = each_isa.gemm_stored(a, codes, scales, "float4_e2m1fn")
    each_isa.threads(2)
    np.testing.assert_array_equal(each_isa.gemm_stored(a, codes, scales, "float4_e2m1fn"), one)
