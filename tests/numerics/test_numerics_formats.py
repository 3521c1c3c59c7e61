"""Every format against gfloat and ml_dtypes: every code, every bfloat16 and float16 value."""

import gfloat
import gfloat.formats as gf
import ml_dtypes
import numpy as np
import pytest
from numerics_library import DTYPES, FORMATS, Numerics

LARGEST = {
    "float8_e4m3fn": 448,
    "float8_e5m2": 57344,
    "float8_e4m3": 240,
    "float8_e3m4": 15.5,
    "float6_e3m2fn": 28,
    "float6_e2m3fn": 7.5,
    "float4_e2m1fn": 6,
}
ML_DTYPES = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3": ml_dtypes.float8_e4m3,
    "float8_e3m4": ml_dtypes.float8_e3m4,
    "float6_e3m2fn": ml_dtypes.float6_e3m2fn,
    "float6_e2m3fn": ml_dtypes.float6_e2m3fn,
    "float4_e2m1fn": ml_dtypes.float4_e2m1fn,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
SMALL = [name for name in FORMATS if name in LARGEST]  # int8 has a test of its own
NUMBERS = [name for name in SMALL if "float8" not in name]  # every code is one
GFLOAT = {
    "float8_e4m3fn": gf.format_info_ocp_e4m3,
    "float8_e5m2": gf.format_info_ocp_e5m2,
    "float6_e3m2fn": gf.format_info_ocp_e3m2,
    "float6_e2m3fn": gf.format_info_ocp_e2m3,
    "float4_e2m1fn": gf.format_info_ocp_e2m1,
    "bfloat16": gf.format_info_bfloat16,
    "float16": gf.format_info_binary16,
}


def every(dtype: np.dtype) -> np.ndarray:
    """All values of a 16-bit type, as float32."""
    return np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float32)


def hard_values() -> np.ndarray:
    """float32 values: near ties of every format, the extremes, and random bits."""
    rng = np.random.default_rng(1)
    ties = np.concatenate([every(t) for t in DTYPES[1:]])
    ties = ties[np.isfinite(ties)]
    near = np.concatenate([ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)])
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    return np.concatenate([near, bits, np.float32([0.0, -0.0, np.inf, -np.inf, np.nan])])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits, any NaN like any other."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    nan = np.isnan(a) & np.isnan(b)
    return bool(np.all(nan | (a.view(np.uint32) == b.view(np.uint32))))


@pytest.mark.parametrize("fmt", SMALL)
def test_every_code_decodes_as_in_ml_dtypes(each_isa: Numerics, fmt: str) -> None:
    codes = np.arange(2 ** ml_dtypes.finfo(ML_DTYPES[fmt]).bits, dtype=np.uint8)
    wanted = codes.view(ML_DTYPES[fmt]).astype(np.float32)
    assert same(each_isa.decode(fmt, codes), wanted)
    assert same(each_isa.reference_decode(fmt, codes), wanted)
    assert np.nanmax(np.where(np.isinf(wanted), np.nan, wanted)) == LARGEST[fmt]


@pytest.mark.parametrize("fmt", SMALL)
@pytest.mark.parametrize("source", DTYPES[1:], ids=str)
def test_every_16_bit_value_encodes_as_in_ml_dtypes(
    each_isa: Numerics, fmt: str, source: np.dtype
) -> None:
    x = every(source)
    x = x[~np.isnan(x)] if fmt in NUMBERS else x
    wanted = x.astype(ML_DTYPES[fmt]).astype(np.float32)
    assert same(each_isa.decode(fmt, each_isa.encode(fmt, x, special=True)), wanted)
    assert same(each_isa.round_to(fmt, x), wanted)


@pytest.mark.parametrize("fmt", sorted(GFLOAT))
def test_values_round_as_in_gfloat(numerics: Numerics, fmt: str) -> None:
    info = GFLOAT[fmt]
    x = every(np.dtype(np.float16))[::7] * np.float32(2.0) ** np.float32(3)
    x = x[~np.isnan(x)] if fmt in NUMBERS else x
    for special in (False, True):
        saturate = not special or fmt in NUMBERS
        wanted = np.array([gfloat.round_float(info, float(v), sat=saturate) for v in x])
        assert same(numerics.round_to(fmt, x, special=special), wanted.astype(np.float32))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("special", [False, True], ids=["saturate", "special"])
def test_fast_equals_reference(each_isa: Numerics, fmt: str, special: bool) -> None:
    x = hard_values()
    codes = each_isa.reference_encode(fmt, x, special=special)
    wanted = each_isa.reference_decode(fmt, codes)
    assert np.array_equal(
        each_isa.round_to(fmt, x, special=special).view(np.uint32), wanted.view(np.uint32)
    )
    if fmt in SMALL or fmt == "int8":
        assert np.array_equal(each_isa.encode(fmt, x, special=special), codes)


def test_integers_are_sixty_fourths(each_isa: Numerics) -> None:
    codes = np.arange(256, dtype=np.uint8)
    wanted = codes.view(np.int8).astype(np.float32) / 64
    assert each_isa.decode("int8", codes).tobytes() == wanted.tobytes()
    assert each_isa.reference_decode("int8", codes).tobytes() == wanted.tobytes()
    for x in (every(DTYPES[1]), every(DTYPES[2])):
        x = x[~np.isnan(x)]
        nearest = np.clip(np.rint(np.clip(x, -4, 4).astype(np.float64) * 64), -127, 127)
        assert np.array_equal(each_isa.encode("int8", x).view(np.int8), nearest.astype(np.int8))
        rounded = each_isa.round_to("int8", x)
        assert rounded.tobytes() == (nearest / 64 + 0.0).astype(np.float32).tobytes()


def test_float32_rounds_to_16_bits_as_in_numpy(each_isa: Numerics) -> None:
    x = hard_values()
    for dtype in DTYPES[1:]:
        assert same(each_isa.convert(x, dtype), x.astype(dtype))


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("to", DTYPES, ids=str)
def test_conversions_round_once(each_isa: Numerics, source: np.dtype, to: np.dtype) -> None:
    x = np.arange(65536, dtype=np.uint16).view(DTYPES[1]).astype(np.float32)
    x = x.astype(source)
    for count in (0, 1, 5, 65536):
        y = each_isa.convert(x[:count], to)
        assert same(y, x[:count].astype(np.float32).astype(to))


def test_tfloat32_keeps_ten_bits(each_isa: Numerics) -> None:
    x = np.float32([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 2**-149, 3.4e38])
    wanted = np.float32([1 + 2**-10, 1, 1 + 2**-9, 0, np.float32(3.4e38)])
    assert np.array_equal(each_isa.round_to("tfloat32", x)[:4], wanted[:4])


def test_subnormals_survive_a_caller_that_flushes_them(each_isa: Numerics) -> None:
    import torch

    if not torch.set_flush_denormal(True):
        pytest.skip("this host cannot flush")
    try:
        x = np.array([0x00400000, 0x00010000], np.uint32).view(np.float32)
        got = each_isa.convert(x, DTYPES[1]).view(np.uint16)
    finally:
        torch.set_flush_denormal(False)
    assert list(got) == [0x0040, 0x0001]


def test_block_scales_are_powers_of_two(numerics: Numerics) -> None:
    for code in range(255):
        assert numerics.c.trn_decode_e8m0(code) == 2.0 ** (code - 127)
        assert numerics.c.trn_encode_e8m0(2.0 ** (code - 127)) == code
    assert np.isnan(numerics.c.trn_decode_e8m0(255))
    for bad in (0.0, -1.0, 3.0, float("inf"), float("nan"), 2.0**-128):
        assert numerics.c.trn_encode_e8m0(bad) == 255
