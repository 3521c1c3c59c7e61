"""Scaled products on trn against products of the values that codes and scales stand for."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import torch_trn_emu
from torch_trn_emu.errors import Unsupported

E8M0, FLOAT4 = torch.float8_e8m0fnu, torch.float4_e2m1fn_x2
MX, ROW = F.ScalingType.BlockWise1x32, F.ScalingType.RowWise
TENSOR = F.ScalingType.TensorWise
WIDE, SQUARE = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
SWIZZLED = F.SwizzleType.SWIZZLE_32_4_4
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def swizzle(scales):
    """SWIZZLE_32_4_4 as torch's tests make it: tiles of 128 x 4, rows 32 apart side by side."""
    rows, columns = scales.shape
    down, across = -(-rows // 128), -(-columns // 4)
    whole = torch.zeros(down * 128, across * 4, dtype=scales.dtype)
    whole[:rows, :columns] = scales
    tiles = whole.view(down, 128, across, 4).permute(0, 2, 1, 3).reshape(-1, 4, 32, 4)
    return tiles.transpose(1, 2).reshape(-1)


def exponents(*shape):
    return torch.randint(120, 134, shape, dtype=torch.uint8)


def factors(codes):
    return torch.exp2(codes.float() - 127).repeat_interleave(32, -1)


def packed(codes):
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8).view(FLOAT4)


def operand(rows, k, dtype):
    """Codes [rows, k], packed for float4, and the values they stand for."""
    if dtype == FLOAT4:
        codes = torch.randint(0, 16, (rows, k))
        return packed(codes), VALUES[codes]
    codes = torch.randn(rows, k).to(dtype)
    return codes, codes.float()


def close(got, expected, bound=0.004):
    error = ((got.cpu().float() - expected).norm() / expected.norm()).item()
    assert error < bound, error


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("dtypes", [(a, b) for a in (*FLOAT8, FLOAT4) for b in (*FLOAT8, FLOAT4)])
def test_mx_is_the_product_of_the_values(dtypes, swizzled):
    (a, x), (b, y) = operand(96, 192, dtypes[0]), operand(64, 192, dtypes[1])
    first, second = exponents(96, 6), exponents(64, 6)
    expected = (x * factors(first)) @ (y * factors(second)).t()
    lay = swizzle if swizzled else torch.clone
    kwargs = {"swizzle_a": SWIZZLED, "swizzle_b": SWIZZLED} if swizzled else {}
    bias = torch.randn(64, dtype=torch.bfloat16)
    got = F.scaled_mm(
        a.to("trn"), b.to("trn").t(), lay(first).view(E8M0).to("trn"), MX,
        lay(second).view(E8M0).to("trn"), MX, bias=bias.to("trn"), output_dtype=torch.float32,
        **kwargs,
    )  # fmt: skip
    close(got, expected + bias.float(), 1e-6)


def test_mx_runs_on_the_mx_array_in_one_launch():
    a, b = (torch.randn(256, 512).to(torch.float8_e4m3fn).to("trn") for _ in range(2))
    scales = exponents(256, 16).view(E8M0).to("trn")
    torch.trn.reset_counters()
    F.scaled_mm(a, b.t(), scales, MX, scales, MX)
    rows = [row for row in torch_trn_emu.launches() if row.device_ns]
    assert [(row.op, row.launches) for row in rows] == [("aten::_scaled_mm_v2", 1)]
    (priced,) = [row for row in torch_trn_emu.op_report() if "scaled" in row.op]
    assert (priced.engine, priced.status) == ("dma", "inferred")
    assert torch.trn.counters()["total_time"] > 0


def test_scales_of_the_older_operator_are_swizzled_unless_their_shape_says_otherwise():
    (a, x), (b, y) = operand(128, 128, FLOAT8[0]), operand(128, 128, FLOAT8[0])
    first, second = exponents(128, 4), exponents(128, 4)
    expected = (x * factors(first)) @ (y * factors(second)).t()
    for lay in (torch.clone, swizzle):
        scales = [lay(s).view(E8M0).to("trn") for s in (first, second)]
        got = torch._scaled_mm(a.to("trn"), b.to("trn").t(), *scales, out_dtype=torch.bfloat16)
        close(got, expected)


@pytest.mark.parametrize("recipes", [(WIDE, WIDE), (WIDE, SQUARE), (SQUARE, WIDE)])
def test_blocks_of_128(recipes):
    (a, x), (b, y) = operand(256, 384, FLOAT8[0]), operand(128, 384, FLOAT8[0])
    scales, values = [], []
    for recipe, rows, value in zip(recipes, (256, 128), (x, y), strict=True):
        given = torch.rand(rows // 128 if recipe == SQUARE else rows, 3) + 0.5
        spread = given.repeat_interleave(128, 1)
        values.append(value * (spread.repeat_interleave(128, 0) if recipe == SQUARE else spread))
        if recipe == SQUARE:  # along K first, padded to 4
            padded = torch.zeros(4, given.shape[0])
            padded[:3] = given.t()
            given = padded.t().contiguous().t()
        scales.append(given.to("trn"))
    got = F.scaled_mm(
        a.to("trn"), b.to("trn").t(), scales[0], recipes[0], scales[1], recipes[1],
        output_dtype=torch.float32,
    )  # fmt: skip
    close(got, values[0] @ values[1].t(), 1e-6)


@pytest.mark.parametrize("recipe", [TENSOR, ROW])
@pytest.mark.parametrize("dtype", FLOAT8)
def test_what_the_cpu_has_too_is_what_the_cpu_gives(recipe, dtype):
    a, b = torch.randn(32, 64).to(dtype), torch.randn(48, 64).to(FLOAT8[0])
    shapes = ((1,), (1,)) if recipe == TENSOR else ((32, 1), (1, 48))
    scales = [torch.rand(shape) for shape in shapes]

    def product(device):
        first, second = (s.to(device) for s in scales)
        return F.scaled_mm(a.to(device), b.to(device).t(), first, recipe, second, recipe).cpu()

    assert torch.equal(product("trn"), product("cpu"))


def test_bad_scales_say_what_is_wrong():
    a = torch.randn(32, 64).to(FLOAT8[0]).to("trn")
    one, scales = torch.ones(1).to("trn"), exponents(32, 2).view(E8M0).to("trn")
    nv = F.ScalingType.BlockWise1x16
    with pytest.raises(Unsupported, match="NVFP4"):
        F.scaled_mm(a, a.t(), one, nv, one, nv)
    with pytest.raises(ValueError, match=r"shape \[32, 2\]"):
        F.scaled_mm(a, a.t(), scales[:16], MX, scales, MX)
    with pytest.raises(ValueError, match="512 elements, got 64"):
        F.scaled_mm(a, a.t(), scales, MX, scales, MX, SWIZZLED, SWIZZLED)
    with pytest.raises(ValueError, match="Invalid scaling configuration"):
        F.scaled_mm(a, a.t(), one, TENSOR, scales, MX)


# --- groups ---------------------------------------------------------------------------------------

OFFS = torch.tensor([4, 4, 10], dtype=torch.int32)


def test_groups_of_rows_with_mx_scales():
    """Each group's scales are swizzled by themselves, padded to 128 rows."""
    (a, x), b = operand(10, 64, FLOAT8[0]), torch.randn(3, 32, 64).to(FLOAT8[0])
    first, second = exponents(10, 2), exponents(3, 32, 2)
    groups = [(0, 4), (4, 4), (4, 10)]
    swizzled = torch.cat([swizzle(first[i:j]) for i, j in groups]).view(-1, 4).view(E8M0)
    weights = torch.stack([swizzle(s) for s in second]).view(E8M0)
    left, right = x * factors(first), b.float() * factors(second)
    expected = torch.cat([left[i:j] @ right[g].t() for g, (i, j) in enumerate(groups)])
    operands = a.to("trn"), b.to("trn").transpose(1, 2)
    offs = OFFS.to("trn")
    old = torch._scaled_grouped_mm(*operands, swizzled.to("trn"), weights.to("trn"), offs)
    close(old, expected)
    new = F.scaled_grouped_mm(
        *operands, swizzled.to("trn"), MX, weights.to("trn"), MX, SWIZZLED, SWIZZLED, offs=offs
    )
    plain = F.scaled_grouped_mm(
        *operands, first.view(E8M0).to("trn"), MX, second.view(E8M0).to("trn"), MX, offs=offs
    )
    assert torch.equal(old, new)
    assert torch.equal(old, plain)


def test_groups_along_the_contraction_with_mx_scales():
    """A weight's gradient: [m, tokens] times [tokens, n], each expert with tokens of its own."""
    (a, x), (b, y) = operand(32, 96, FLOAT8[0]), operand(48, 96, FLOAT8[0])
    offs = torch.tensor([32, 96], dtype=torch.int32)
    first, second = exponents(32, 3), exponents(48, 3)
    cuts = [(0, 1), (1, 3)]
    scales = [torch.cat([swizzle(s[:, i:j]) for i, j in cuts]).view(128, -1).view(E8M0)
              for s in (first, second)]  # fmt: skip
    left, right = x * factors(first), y * factors(second)
    parts = [slice(i * 32, j * 32) for i, j in cuts]
    expected = torch.stack([left[:, part] @ right[:, part].t() for part in parts])
    first_scales, second_scales = (s.to("trn") for s in scales)
    got = F.scaled_grouped_mm(
        a.to("trn"), b.to("trn").t(), first_scales, MX, second_scales, MX, SWIZZLED, SWIZZLED,
        offs=offs.to("trn"),
    )  # fmt: skip
    close(got, expected)


def test_groups_with_scales_of_rows():
    (a, x), b = operand(10, 64, FLOAT8[0]), torch.randn(3, 32, 64).to(FLOAT8[0])
    first, second = torch.rand(10), torch.rand(3, 32)
    left, right = x * first[:, None], b.float() * second[..., None]
    expected = torch.cat([left[:4] @ right[0].t(), left[4:] @ right[2].t()])
    got = F.scaled_grouped_mm(
        a.to("trn"), b.to("trn").transpose(1, 2), first.to("trn"), ROW, second.to("trn"), ROW,
        offs=OFFS.to("trn"),
    )  # fmt: skip
    close(got, expected)


@pytest.mark.parametrize("policy", ["fp32", "bf16", "mxfp8"])
def test_grouped_products_follow_the_policy_of_linear_layers(policy):
    """Forward and both gradients are those of one product for each expert."""
    torch.manual_seed(0)
    x = torch.randn(10, 64, dtype=torch.bfloat16).to("trn").requires_grad_()
    w = torch.randn(3, 64, 32, dtype=torch.bfloat16).to("trn").requires_grad_()
    ends = [0, *OFFS.tolist()]
    with torch_trn_emu.precision(policy):
        grouped = F.grouped_mm(x, w, offs=OFFS.to("trn"))
        parts = [x[i:j] @ w[g] for g, (i, j) in enumerate(pairwise(ends))]
        looped = torch.cat(parts)
        assert torch.equal(grouped, looped)
        g = torch.randn_like(grouped)
        of_grouped = torch.autograd.grad(grouped, (x, w), g)
        of_looped = torch.autograd.grad(looped, (x, w), g)
    bound = 0.005 if policy != "mxfp8" else 0.06  # the order of operands differs in w's gradient
    for a, b in zip(of_grouped, of_looped, strict=True):
        close(a, b.cpu().float(), bound)


def test_rows_behind_the_last_group_are_zero():
    x, w = torch.ones(6, 32, dtype=torch.bfloat16), torch.ones(1, 32, 32, dtype=torch.bfloat16)
    offs = torch.tensor([4], dtype=torch.int32)
    for policy in ("fp32", "mxfp8"):
        with torch_trn_emu.precision(policy):
            got = F.grouped_mm(x.to("trn"), w.to("trn"), offs=offs.to("trn")).cpu()
        assert got[:4].eq(32).all()
        assert got[4:].eq(0).all()


def test_what_does_not_multiply_raises_as_on_the_cpu():
    one, a = torch.ones(()), torch.zeros(16, 16).to(FLOAT8[0])
    for first, second in ((a[:, :0], a.t()), (a, a.t()[:0]), (a, a.t()[None])):
        for device in ("cpu", "trn"):
            scale = one.to(device)
            with pytest.raises(RuntimeError):
                torch._scaled_mm(first.to(device), second.to(device), scale, scale)
