"""MX kernels give the bits of the C++ kernels, and those of the definition in numpy."""

import numpy as np
import pytest
import torch
from oracles import DEVICE, DTYPES, ELEMENTS, RULES, assert_same_bits, bits, draw

from torch_trn_emu.formats.mx import MX_FORMATS
from torch_trn_emu.formats.mx import quantize_mx as definition
from torch_trn_emu.triton.quantize import dequantize_mx, quantize_dequantize_mx, quantize_mx

trn = torch.ops.trn


def strided(layout: str, dtype: torch.dtype) -> torch.Tensor:
    x = draw(72, 132, dtype=dtype)
    return {
        "rows": x,
        "columns": x.t(),
        "sliced": x[1::2, ::3],
        "expanded": x[:1].expand(40, 132),
        "negated": torch._neg_view(x),
    }[layout]


def assert_all_alike(
    x: torch.Tensor, dim: int, grouping: str = "contiguous", **spec: object
) -> None:
    """Codes, scales, values and decoded codes of x, against the C++ kernels."""
    on = x.to(DEVICE) if DEVICE != "cpu" else x
    want = trn.quantize_mx(x, dim=dim, grouping=grouping, **spec)
    got = quantize_mx(on, dim, grouping=grouping, **spec)
    for mine, theirs in zip(got, want, strict=True):
        assert_same_bits(mine, theirs)
        assert mine.stride() == theirs.stride()
    values = trn.quantize_dequantize_mx(x, dim=dim, grouping=grouping, **spec)
    assert_same_bits(quantize_dequantize_mx(on, dim, grouping=grouping, **spec), values)
    for dtype in (torch.float32, torch.bfloat16):
        decoded = trn.dequantize_mx(
            *want, dim=dim, dtype=dtype, grouping=grouping, size=x.shape[dim]
        )
        mine = dequantize_mx(*got, dim, dtype, grouping, x.shape[dim])
        assert_same_bits(mine, decoded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_and_format(rule, element, dtype):
    for shape, dim in (((5, 70), 1), ((70, 5), 0)):
        assert_all_alike(draw(*shape, dtype=dtype), dim, element=element, scale_rule=rule)


@pytest.mark.parametrize("grouping", ["contiguous", "wrapped"])
@pytest.mark.parametrize("element", ["float8_e4m3fn", "float4_e2m1fn"])
@pytest.mark.parametrize("layout", ["rows", "columns", "sliced", "expanded", "negated"])
@pytest.mark.parametrize("dim", [0, 1])
def test_every_layout(dim, layout, element, grouping):
    assert_all_alike(strided(layout, torch.bfloat16), dim, grouping, element=element)


@pytest.mark.parametrize(
    ("shape", "dim"), [((2, 70, 3), 1), ((3, 4, 33), -1), ((33, 2, 2), 0), ((96,), 0), ((1, 1), 1)]
)
@pytest.mark.parametrize("element", ["float8_e5m2", "float4_e2m1fn"])
def test_every_rank(element, shape, dim):
    assert_all_alike(draw(*shape), dim, element=element)


@pytest.mark.parametrize("shape", [(4, 0), (0, 64), (0, 0)])
@pytest.mark.parametrize("dim", [0, 1])
def test_empty_axes(dim, shape):
    assert_all_alike(torch.empty(shape), dim)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dim"), [((5, 70), 1), ((70, 5), 0), ((2, 40, 6), 1)])
def test_stochastic_rounding_draws_the_same_bits(shape, dim, dtype, element):
    x = draw(*shape, dtype=dtype)
    assert_all_alike(x, dim, element=element, rounding="stochastic", seed=2**40 + 7)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", ["columns", "sliced"])
@pytest.mark.parametrize("dim", [0, 1])
def test_stochastic_rounding_of_strided_values(dim, layout, rule):
    for element in ("float8_e4m3fn", "float4_e2m1fn"):
        x = strided(layout, torch.bfloat16)[:40]
        assert_all_alike(x, dim, element=element, scale_rule=rule, rounding="stochastic", seed=3)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_values_of_16_bits(dtype, element):
    """In blocks of neighbours and of strangers: NaN, infinity and subnormals among them."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for x in (every.view(-1, 32), every.view(32, -1)):
        assert_all_alike(x, 1 if x.shape[1] == 32 else 0, element=element, scale_rule="rceil")


def test_the_definition_in_numpy():
    x = draw(64, 64, dtype=torch.bfloat16)
    for element, name in (("float8_e4m3fn", "mxfp8"), ("float8_e5m2", "mxfp8_e5m2")):
        for rule in RULES:
            codes, scales = quantize_mx(x.to(DEVICE), element=element, scale_rule=rule)
            want_codes, want_scales = definition(x.double().numpy(), MX_FORMATS[name], rule)
            assert np.array_equal(bits(codes).numpy(), want_codes)
            assert np.array_equal(bits(scales).numpy(), want_scales)


def test_float32_beyond_bfloat16_and_its_nan_payloads():
    pattern = [0x7F7FFFFF, 0x7FFFFFFF, 0xFFC00001, 0x7F800001, 0x00000001, 0x807FFFFF, 0x80000000]
    x = torch.tensor(pattern, dtype=torch.uint32).view(torch.float32)
    for first in x.tolist():
        assert torch.tensor(first).dtype is torch.float32
    assert_all_alike(x[:, None].repeat(1, 32).contiguous(), 1)
    assert_all_alike(torch.cat([x, torch.ones(25)])[None], 1)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"element": "float6"}, ValueError, 'element "float6" is none of'),
        ({"scale_rule": "up"}, ValueError, 'scale_rule "up" is none of'),
        ({"rounding": "x"}, ValueError, 'rounding "x" is none of'),
        ({"grouping": "x"}, ValueError, 'grouping "x" is none of'),
        ({"dim": 3}, IndexError, "Dimension out of range"),
    ],
)
def test_wrong_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        quantize_mx(torch.ones(2, 32, device=DEVICE), **arguments)


def test_what_does_not_fit_is_refused():
    x = torch.ones(2, 64, device=DEVICE)
    with pytest.raises(TypeError, match="Convert it first"):
        quantize_mx(x.double())
    with pytest.raises(RuntimeError, match="no axis to block"):
        quantize_mx(x[0, 0])
    codes, scales = quantize_mx(x)
    with pytest.raises(ValueError, match="have shape"):
        dequantize_mx(codes, scales[:, :1])
    with pytest.raises(TypeError, match="scales are float8_e8m0fnu"):
        dequantize_mx(codes, scales.view(torch.uint8))
    with pytest.raises(TypeError, match="MX codes are"):
        dequantize_mx(codes.view(torch.uint8), scales)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        dequantize_mx(codes, scales, dtype=torch.float64)
    packed, scales = quantize_mx(x, element="float4_e2m1fn")
    with pytest.raises(ValueError, match="does not fit"):
        dequantize_mx(packed, scales, size=60)
