"""Products of rounded operands lie within the bound of float32 sums; operands are the C++ ones."""

import oracle
import pytest
import torch
from oracles import DEVICE, DTYPES, RULES, assert_same_bits, draw

from torch_trn_emu.triton import matmul
from torch_trn_emu.triton.matmul import mx_matmul, mx_mm, product, round_operand
from torch_trn_emu.triton.operands import Operand, operand_of
from torch_trn_emu.triton.quantize import quantize_mx

PAIRS = (("mxfp8", "mxfp8"), ("mxfp8", "mxfp4"), ("bf16", "bf16"), ("as_given", "as_given"))
SHAPES = ((1, 1, 1), (33, 70, 17), (5, 0, 3), (0, 32, 4), (130, 257, 96))  # m, k, n


def rounded(formats, a, b):
    """The operands by definition, float64."""
    names = ("as given" if name == "as_given" else name for name in formats)
    return oracle.Rounded(*names).apply(a, b)


def near(*shape, dtype=torch.float32, seed=0):
    """A few binades only: float16 holds the products."""
    return draw(*shape, dtype=dtype, spread=2, seed=seed)


@pytest.mark.parametrize("formats", PAIRS, ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape, dtype, formats):
    m, k, n = shape
    a, b = near(m, k, dtype=dtype), near(n, k, dtype=dtype, seed=1).t()
    got = product(a.to(DEVICE), b.to(DEVICE), *formats, dtype)
    oracle.assert_product(got, *rounded(formats, a, b))


@pytest.mark.parametrize("formats", PAIRS, ids="-".join)
def test_addends_batches_and_vectors(formats):
    a, b, c = near(3, 9, 65), near(3, 65, 7, seed=1), near(9, 1, seed=2)
    x, y = rounded(formats, a, b)
    on = [t.to(DEVICE) for t in (a, b, c)]
    got = product(on[0], on[1], *formats, torch.float32, on[2], 0.5, 2.0)
    oracle.assert_product(got, 2.0 * x, y, 0.5 * c.double())
    got = product(on[0][0], on[1][0, :, 0], *formats, torch.float32, on[2][:, 0])
    column = rounded(formats, a[0], b[0, :, :1])
    oracle.assert_product(got[:, None], *column, c.double())
    got = product(on[0][0, 0], on[1][0], *formats, torch.float32)
    oracle.assert_product(got[None], *rounded(formats, a[0, :1], b[0]))
    got = product(on[0][0, 0], on[1][0, :, 0], *formats, torch.float32)
    assert got.shape == ()


def test_without_a_contraction_the_addend_remains():
    a, b, c = (torch.ones(s, device=DEVICE) for s in ((2, 0), (0, 3), (3,)))
    got = product(a, b, "mxfp8", "mxfp8", torch.float32, c, 2.0)
    assert torch.equal(got, torch.full((2, 3), 2.0, device=DEVICE))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_strided_operands_give_what_contiguous_ones_give(layout):
    a = {
        "transposed": near(70, 24).t(),
        "sliced": near(24, 140)[:, ::2],
        "expanded": near(1, 70).expand(24, 70),
    }[layout].to(DEVICE)
    b = near(70, 16, seed=1).to(DEVICE)
    for formats in (("mxfp8", "mxfp8"), ("mxfp8", "mxfp4"), ("bf16", "bf16")):
        got = product(a, b, *formats, torch.float32)
        assert torch.equal(got, product(a.contiguous(), b, *formats, torch.float32))
        turned = product(b.t(), a.t(), *formats, torch.float32)  # as the second operand
        want = product(b.t().contiguous(), a.t().contiguous(), *formats, torch.float32)
        assert torch.equal(turned, want)


def test_operands_of_different_dtypes():
    a, b = near(9, 64), near(64, 5, dtype=torch.float16, seed=1)
    got = product(a.to(DEVICE), b.to(DEVICE), "mxfp8", "as_given", torch.float32)
    oracle.assert_product(got, *rounded(("mxfp8", "as_given"), a, b))


def test_an_operand_rounded_beforehand_is_the_same_operand(monkeypatch):
    a, b = near(40, 70).to(DEVICE), near(70, 20, seed=1).to(DEVICE)
    for formats in PAIRS[:3]:
        fused = product(a, b, *formats, torch.float32)
        monkeypatch.setattr(matmul, "INTERPRETED", False)
        monkeypatch.setattr(matmul, "REREADS", 0)
        before = [
            matmul._before(operand_of(x, f), 2, dim)
            for x, f, dim in zip((a, b), formats, (-1, -2), strict=True)
        ]
        monkeypatch.undo()
        assert {x.kind for x in before} == {0}
        assert torch.equal(matmul.multiply(*before, torch.float32), fused)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_the_blas_takes_what_was_rounded_before(alpha, added):
    half = torch.bfloat16
    a, b, c = (near(*s, dtype=half).to(DEVICE) for s in ((40, 70), (70, 20), (20,)))
    first, second = Operand(a), Operand(b)
    flags = torch.backends.cuda.matmul
    before = flags.allow_bf16_reduced_precision_reduction
    assert matmul.blas_takes(first, second, half, c if added else None)
    got = matmul.blas_product(a, b, half, c if added else None, alpha, 0.5)
    assert flags.allow_bf16_reduced_precision_reduction == before
    want = matmul.multiply(first, second, half, c if added else None, alpha, 0.5)
    torch.testing.assert_close(got, want, rtol=2.0**-7, atol=2.0**-7)
    assert not matmul.blas_takes(first, second, torch.float16, None)
    assert not matmul.blas_takes(first, second, half, c.float())
    assert not matmul.blas_takes(operand_of(a, "mxfp8"), second, half, None)


@pytest.mark.parametrize("format", ["as_given", "bf16", "mxfp8", "mxfp4"])
@pytest.mark.parametrize("dim", [-1, -2])
def test_round_operand_gives_the_bits_of_the_host(dim, format):
    for x in (near(40, 70), near(2, 40, 33), near(70, 40).t()):
        want = torch.ops.trn.round_operand(x, format, dim)
        assert_same_bits(round_operand(x.to(DEVICE), format, dim), want)


@pytest.mark.parametrize("grouping", ["contiguous", "wrapped"])
@pytest.mark.parametrize("element", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_mx_products_of_values_and_of_codes(element, grouping):
    a, b = near(9, 600), near(600, 7, seed=1)
    want = torch.ops.trn.mx_mm(a, b, a_element=element, b_element=element, grouping=grouping)
    got = mx_mm(a.to(DEVICE), b.to(DEVICE), element, element, grouping=grouping)
    bound = 602 * 2.0**-24 * 2 * float((a.abs() @ b.abs()).max())
    assert float((got.cpu() - want).abs().max()) <= bound
    first = quantize_mx(a.to(DEVICE), 1, element, grouping=grouping)
    second = quantize_mx(b.to(DEVICE), 0, element, grouping=grouping)
    of_codes = mx_matmul(*first, *second, grouping=grouping)
    assert float((of_codes - got).abs().max()) <= bound


@pytest.mark.parametrize("element", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
@pytest.mark.parametrize("rule", RULES)
def test_mx_products_by_every_rule(rule, element):
    """Of operands that the C++ kernels have quantised: their values, in float64."""
    a, b = near(9, 70), near(70, 7, seed=1)
    got = mx_mm(a.to(DEVICE), b.to(DEVICE), element, element, scale_rule=rule)
    x, y = (
        torch.ops.trn.quantize_dequantize_mx(t, dim=dim, element=element, scale_rule=rule).double()
        for t, dim in ((a, 1), (b, 0))
    )
    oracle.assert_product(got, x, y)


@pytest.mark.parametrize("grouping", ["contiguous", "wrapped"])
@pytest.mark.parametrize("element", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_codes_decoded_while_loaded_or_before_give_one_product(element, grouping):
    """Of batches, strided codes and operands of two formats."""
    a, b = near(2, 9, 600), near(2, 600, 7, seed=1)
    first = quantize_mx(a.to(DEVICE), -1, "float8_e4m3fn", grouping=grouping)
    second = quantize_mx(b.to(DEVICE).mT.contiguous(), -1, element, grouping=grouping)
    turned = [t.mT for t in second]  # columns of b lie in rows
    if element == "float4_e2m1fn":  # bytes of two codes along the contraction
        assert turned[0].shape == (2, 300, 7)
    x, y = (
        torch.ops.trn.dequantize_mx(*(t.cpu() for t in codes), dim=dim, grouping=grouping)
        for codes, dim in ((first, -1), ([t.contiguous() for t in turned], -2))
    )
    got = mx_matmul(*first, *turned, grouping=grouping)
    oracle.assert_product(got, x.double(), y.double())
    before = Operand(turned[0], scales=turned[1], wrapped=grouping == "wrapped").rounded(-2)
    assert torch.equal(before.x.float().cpu(), y)


def test_nan_and_infinity_poison_what_the_host_poisons():
    a, b = near(9, 70), near(70, 5, seed=1)
    a[3, 40], b[2, 1] = float("nan"), float("inf")
    got = product(a.to(DEVICE), b.to(DEVICE), "mxfp8", "mxfp8", torch.float32).cpu()
    want = torch.ops.trn.product(a, b, "mxfp8", "mxfp8", torch.float32)
    assert torch.equal(got.isnan(), want.isnan())
    assert got.isnan().any()


def test_what_cannot_be_multiplied_is_refused():
    one = torch.ones(2, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        mx_mm(one, one)
    with pytest.raises(TypeError, match="Convert it first"):
        mx_mm(one.double(), one.t().double())
    with pytest.raises(ValueError, match="operand format"):
        product(one, one.t(), "fp6", "fp6", torch.float32)
