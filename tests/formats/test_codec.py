"""Every code of the small formats, every value of the 16-bit ones, against ml_dtypes as oracle."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_trn_emu.errors import Unsupported
from torch_trn_emu.formats import ELEMENTS, FORMATS, MX_FORMATS, POLICIES
from torch_trn_emu.formats.codec import decode, encode, round_to

ORACLE = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3),
    "float8_e3m4": np.dtype(ml_dtypes.float8_e3m4),
    "float6_e2m3fn": np.dtype(ml_dtypes.float6_e2m3fn),
    "float6_e3m2fn": np.dtype(ml_dtypes.float6_e3m2fn),
    "float4_e2m1fn": np.dtype(ml_dtypes.float4_e2m1fn),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
SMALL = [name for name, row in FORMATS.items() if row.bits <= 16]
LIMITS = [
    # name, max, smallest normal, smallest value
    ("float32", 3.4028234663852886e38, 2.0**-126, 2.0**-149),
    ("bfloat16", 3.3895313892515355e38, 2.0**-126, 2.0**-133),
    ("float16", 65504.0, 2.0**-14, 2.0**-24),
    ("float8_e5m2", 57344.0, 2.0**-14, 2.0**-16),
    ("float8_e4m3fn", 448.0, 2.0**-6, 2.0**-9),
    ("float8_e4m3", 240.0, 2.0**-6, 2.0**-9),
    ("float8_e3m4", 15.5, 2.0**-2, 2.0**-6),
    ("float6_e2m3fn", 7.5, 1.0, 0.125),
    ("float6_e3m2fn", 28.0, 0.25, 0.0625),
    ("float4_e2m1fn", 6.0, 1.0, 0.5),
    ("float8_e8m0fnu", 2.0**127, 2.0**-127, 2.0**-127),
]


@pytest.mark.parametrize(("name", "largest", "normal", "smallest"), LIMITS)
def test_limits_follow_from_the_bits(
    name: str, largest: float, normal: float, smallest: float
) -> None:
    row = FORMATS[name]
    assert (row.max, row.min_normal, row.min_subnormal) == (largest, normal, smallest)


@pytest.mark.parametrize("name", SMALL)
def test_every_code_decodes_as_the_oracle_says(name: str) -> None:
    codes = np.arange(2 ** FORMATS[name].bits)
    bits = codes.astype(np.uint16 if FORMATS[name].bits == 16 else np.uint8)
    with np.errstate(invalid="ignore"):
        expected = bits.view(ORACLE[name]).astype(np.float64)
    got = decode(FORMATS[name], codes)
    np.testing.assert_array_equal(got, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(expected)[number])


@pytest.mark.parametrize("name", SMALL)
def test_every_number_encodes_to_its_own_code(name: str) -> None:
    row = FORMATS[name]
    codes = np.arange(2**row.bits)
    values = decode(row, codes)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(encode(row, values[number]), codes[number])


@pytest.mark.parametrize("name", [n for n in SMALL if FORMATS[n].bits <= 8 and FORMATS[n].signed])
def test_every_bfloat16_rounds_as_the_oracle_says(name: str) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    row = FORMATS[name]
    if row.nan_code is None:
        values = values[np.isfinite(values)]
    with np.errstate(invalid="ignore", over="ignore"):
        expected = values.astype(ORACLE[name]).astype(np.float64)
    np.testing.assert_array_equal(round_to(row, values), expected)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_float32_rounds_as_the_oracle_says(name: str, bits: list[int]) -> None:
    values = np.array(bits, dtype=np.uint32).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = values.astype(ORACLE[name]).astype(np.float64)
    np.testing.assert_array_equal(round_to(FORMATS[name], values), expected)


@given(bits=st.integers(0, 2**32 - 1))
def test_tfloat32_clears_thirteen_bits_of_float32(bits: int) -> None:
    value = np.array(bits, dtype=np.uint32).view(np.float32)
    if not np.isfinite(value):
        return
    # Round to nearest even on the integer code: add half less one plus the last kept bit.
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000
    expected = np.array(rounded & 0xFFFFFFFF, dtype=np.uint32).view(np.float32)
    assert round_to(FORMATS["tfloat32"], value) == expected


def test_overflow_saturates_or_becomes_special() -> None:
    e4m3fn, e5m2, e2m1 = (FORMATS[n] for n in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"))
    assert round_to(e4m3fn, 1e9, "saturate") == 448
    assert np.isnan(round_to(e4m3fn, 1e9))
    assert round_to(e5m2, -1e9) == -np.inf
    assert round_to(e2m1, -np.inf) == -6


def test_integers_are_sixty_fourths_in_twos_complement() -> None:
    row = ELEMENTS["int8"].format
    assert (row.max, row.emax, row.min_subnormal, row.bits) == (1 + 63 / 64, 0, 1 / 64, 8)
    codes = np.arange(256)
    values = decode(row, codes)
    np.testing.assert_array_equal(values, codes.astype(np.int8) / 64)
    np.testing.assert_array_equal(encode(row, values)[codes != 128], codes[codes != 128])
    assert encode(row, -2.0) == 129  # the least code has no opposite and is not given
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    every = every[~np.isnan(every)].astype(np.float64)
    nearest = np.clip(np.rint(np.clip(every, -4, 4) * 64), -127, 127) / 64
    np.testing.assert_array_equal(round_to(row, every), nearest)
    assert not np.signbit(round_to(row, -0.001))


def test_the_table_is_complete() -> None:
    names = {"weight", "other", "weight_gradient", "attention", "convolution"}
    for policy in POLICIES.values():
        for name in names:
            assert getattr(policy, name) in {"as_given", "bf16", *MX_FORMATS}, policy.name
    for row in MX_FORMATS.values():
        assert ELEMENTS[row.element.name].format is row.element
    assert {name: row.label for name, row in MX_FORMATS.items()}["mxfp6_e2m3"] == "MXFP6 E2M3"
    assert MX_FORMATS["mxint8"].label == "MXINT8"
    assert MX_FORMATS["mxint8"].bits_per_element == 8.25
    assert FORMATS["float6_e2m3fn"].storage_bytes == 1


def test_what_a_format_cannot_hold_is_refused() -> None:
    with pytest.raises(Unsupported, match="no NaN"):
        encode(FORMATS["float4_e2m1fn"], np.nan)
    with pytest.raises(Unsupported, match="powers of two"):
        encode(FORMATS["float8_e8m0fnu"], 0.0)
