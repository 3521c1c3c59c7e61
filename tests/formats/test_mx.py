"""MX quantization: the rules, the special blocks, the ragged end."""

import gfloat
import gfloat.formats
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_trn_emu.formats.mx import MX_FORMATS, SCALE_RULES, dequantize_mx, quantize_mx

MXFP8 = MX_FORMATS["mxfp8"]
GFLOAT = {
    "mxfp8": gfloat.formats.format_info_ocp_e4m3,
    "mxfp8_e5m2": gfloat.formats.format_info_ocp_e5m2,
    "mxfp4": gfloat.formats.format_info_ocp_e2m1,
    "mxfp6_e2m3": gfloat.formats.format_info_ocp_e2m3,
    "mxfp6_e3m2": gfloat.formats.format_info_ocp_e3m2,
    "mxint8": gfloat.formats.format_info_ocp_int8,
}


def _block(top: float) -> np.ndarray:
    return np.concatenate([[top], np.zeros(31)])


@pytest.mark.parametrize(
    ("rule", "amax", "lands_at"),
    [
        ("trn3", 448.0, 224.0),
        ("trn3", 511.0, 256.0),  # 255.5 rounds up to the next binade, not into saturation
        ("trn3", 256.0, 128.0),
        ("ocp_floor", 448.0, 448.0),
        ("ocp_floor", 511.0, 448.0),  # saturates
        ("ceil", 256.0, 256.0),
        ("ceil", 257.0, 128.0),
        ("rceil", 448.0, 448.0),
        ("rceil", 449.0, 224.0),
        ("even", 500.0, 256.0),
        ("even", 464.0, 448.0),  # rounds to 464 = 1.1101b x 2^8: four bits, ties away to 480
    ],
)
def test_the_largest_element_lands_where_the_rule_says(
    rule: str, amax: float, lands_at: float
) -> None:
    codes, scales = quantize_mx(_block(amax), MXFP8, rule)
    value = dequantize_mx(codes, np.full_like(scales, 127))[0]
    assert value == lands_at


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1))
@pytest.mark.parametrize("name", MX_FORMATS)
def test_elements_are_the_scaled_values_rounded_by_an_independent_oracle(
    name: str, values: list[float]
) -> None:
    format = MX_FORMATS[name]
    codes, scales = quantize_mx(values, format)
    for i, value in enumerate(values):
        scaled = value / 2.0 ** (int(scales[i // 32]) - 127)
        expected = gfloat.round_float(GFLOAT[name], scaled, sat=True)
        assert dequantize_mx(codes, np.full_like(scales, 127), format)[i] == expected


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_trn3_rule_never_saturates(values: list[float]) -> None:
    codes, scales = quantize_mx(values, MXFP8, "trn3")
    top = np.abs(dequantize_mx(codes, np.full_like(scales, 127))).max()
    assert top <= 256 or (scales == 254).any()


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_special_blocks(rule: str) -> None:
    codes, scales = quantize_mx([_block(0.0), _block(np.inf), _block(np.nan)], MXFP8, rule)
    assert scales[:, 0].tolist() == [0, 255, 255]
    assert not codes[0].any()
    assert np.isnan(dequantize_mx(codes, scales)[1:]).all()


def test_a_ragged_end_is_padded_with_zeros() -> None:
    x = np.linspace(-3, 3, 45)
    codes, scales = quantize_mx(x)
    assert codes.shape == (45,)
    assert scales.shape == (2,)
    np.testing.assert_array_equal(codes[32:], quantize_mx(x[32:])[0])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3, 64)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    codes, scales = quantize_mx(np.ones(shape))
    assert codes.shape == shape
    assert scales.shape == (*shape[:-1], -(-shape[-1] // 32))
    np.testing.assert_array_equal(dequantize_mx(codes, scales), np.ones(shape))


def test_bits_per_element() -> None:
    assert MXFP8.bits_per_element == 8.25
    assert MX_FORMATS["mxfp4"].bits_per_element == 4.25
