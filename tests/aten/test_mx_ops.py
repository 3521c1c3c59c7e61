"""torch.ops.trn: MX quantisation and products, alike on trn and on the host."""

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_trn_emu.formats import ELEMENTS as ROWS
from torch_trn_emu.formats.mx import MX_FORMATS, SCALE_RULES, dequantize_mx, quantize_mx

ELEMENTS = {row.element.name: name for name, row in MX_FORMATS.items()}
RULES = tuple(SCALE_RULES)
IN_BYTES = [name for name, row in ROWS.items() if not row.named_by_dtype]

devices = pytest.mark.parametrize("device", ["cpu", "trn"])
elements = pytest.mark.parametrize("element", ELEMENTS)


def draw(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return x * torch.exp2(torch.randint(-20, 20, shape).float())


def plain_codes(codes: Tensor, dim: int, k: int) -> np.ndarray:
    """uint8 codes [..., k] along the last axis, unpacked."""
    raw = codes.cpu().view(torch.uint8).movedim(dim, -1).numpy()
    if codes.dtype is torch.float4_e2m1fn_x2:
        raw = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)
    return raw[..., :k]


@devices
@elements
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 70), -1), ((70, 3), 0), ((2, 5, 64), 1), ((96,), 0)]
)
def test_quantize_is_the_definition(device, element, rule, shape, dim):
    x = draw(*shape).bfloat16()
    codes, scales = torch.ops.trn.quantize_mx(
        x.to(device), dim=dim, element=element, scale_rule=rule
    )
    assert codes.device.type == scales.device.type == device
    moved = x.double().movedim(dim, -1)
    want_codes, want_scales = quantize_mx(moved.numpy(), MX_FORMATS[ELEMENTS[element]], rule)
    assert np.array_equal(plain_codes(codes, dim, moved.shape[-1]), want_codes)
    assert np.array_equal(scales.cpu().view(torch.uint8).movedim(dim, -1).numpy(), want_scales)
    back = torch.ops.trn.dequantize_mx(
        codes, scales, dim=dim, size=moved.shape[-1], element=element
    )
    want = dequantize_mx(want_codes, want_scales, MX_FORMATS[ELEMENTS[element]])
    assert np.array_equal(back.cpu().double().movedim(dim, -1).numpy(), want)
    rounded = torch.ops.trn.quantize_dequantize_mx(
        x.to(device), dim=dim, element=element, scale_rule=rule
    )
    assert torch.equal(rounded.double(), back.double())
    meta, meta_scales = torch.ops.trn.quantize_mx(x.to("meta"), dim=dim, element=element)
    assert (meta.shape, meta.dtype, meta_scales.shape) == (codes.shape, codes.dtype, scales.shape)


@devices
def test_a_byte_of_six_bits_needs_its_element(device):
    x = draw(4, 64).to(device)
    assert {"float6_e2m3fn", "float6_e3m2fn"} <= set(IN_BYTES)
    for element in IN_BYTES:
        codes, scales = torch.ops.trn.quantize_mx(x, element=element)
        assert codes.dtype is torch.uint8
        assert int(codes.max()) < 1 << ROWS[element].format.bits
        with pytest.raises(TypeError, match=f"{' or '.join(IN_BYTES)}: name the element"):
            torch.ops.trn.dequantize_mx(codes, scales)
        with pytest.raises(TypeError, match="MX codes of int8 are Char, got Byte"):
            torch.ops.trn.dequantize_mx(codes, scales, element="int8")
    codes, scales = torch.ops.trn.quantize_mx(x, element="int8")
    assert codes.dtype is torch.int8  # which names its element
    assert int(codes.abs().max()) <= 127
    back = torch.ops.trn.dequantize_mx(codes, scales)
    assert torch.equal(back, torch.ops.trn.quantize_dequantize_mx(x, element="int8"))
    with pytest.raises(ValueError, match='element "float6" is none of'):
        torch.ops.trn.dequantize_mx(codes, scales, element="float6")


@devices
def test_codes_lie_in_the_layout_of_the_source(device):
    x = draw(64, 96).to(device)
    codes, scales = torch.ops.trn.quantize_mx(x.t(), dim=0)
    assert codes.stride() == x.t().stride()
    again, again_scales = torch.ops.trn.quantize_mx(x.t().contiguous(), dim=0)
    assert torch.equal(codes.view(torch.uint8), again.view(torch.uint8))
    assert torch.equal(scales.view(torch.uint8), again_scales.view(torch.uint8))


@devices
def test_float32_goes_through_bfloat16(device):
    x = torch.tensor([[1.0 + 2.0**-8 + 2.0**-20]]).expand(1, 32).to(device)
    codes, _ = torch.ops.trn.quantize_mx(x)
    rounded, _ = torch.ops.trn.quantize_mx(x.bfloat16())
    assert torch.equal(codes.view(torch.uint8), rounded.view(torch.uint8))


@devices
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_block_with_nan_or_infinity_is_nan(device, poison):
    x = torch.ones(2, 64)
    x[0, 5] = poison
    codes, scales = torch.ops.trn.quantize_mx(x.to(device))
    assert scales.view(torch.uint8).tolist() == [[0xFF, 120], [120, 120]]
    back = torch.ops.trn.dequantize_mx(codes, scales).cpu()
    assert back[0, :32].isnan().all()
    assert torch.equal(back[1], x[1])
    assert (back[0, 32:] == 1).all()


@devices
def test_zero_blocks_keep_their_signs(device):
    x = torch.tensor([0.0, -0.0] * 16, device=device)
    codes, scales = torch.ops.trn.quantize_mx(x)
    assert scales.view(torch.uint8).item() == 0
    back = torch.ops.trn.dequantize_mx(codes, scales)
    assert torch.equal(torch.signbit(back), torch.signbit(x))
    assert (back == 0).all()


@devices
@pytest.mark.parametrize(("grouping", "scales_of_600"), [("contiguous", 19), ("wrapped", 32)])
def test_grouping_says_which_elements_share_a_scale(device, grouping, scales_of_600):
    x = draw(2, 600).to(device)
    codes, scales = torch.ops.trn.quantize_mx(x, grouping=grouping)
    assert scales.shape == (2, scales_of_600)
    back = torch.ops.trn.dequantize_mx(codes, scales, grouping=grouping)
    assert torch.equal(back, torch.ops.trn.quantize_dequantize_mx(x, grouping=grouping))
    # Scaling one block by a power of two changes the scale of that block alone.
    members = torch.zeros(600, dtype=torch.bool)
    index = torch.arange(600)
    if grouping == "contiguous":
        members = index // 32 == 1
    else:
        members = (index < 512) & (index % 128 // 8 == 1)
    y = torch.where(members.to(device), x * 4, x)
    _, moved = torch.ops.trn.quantize_mx(y, grouping=grouping)
    changed = (moved.view(torch.uint8).int() - scales.view(torch.uint8).int()).cpu()
    assert changed[:, 1].tolist() == [2, 2]
    assert changed.abs().sum() == 4


@devices
def test_stochastic_rounding_is_seeded_and_unbiased(device):
    x = torch.full((4096, 32), 1.05, device=device)
    x[:, 0] = 1.75
    draws = [
        torch.ops.trn.quantize_dequantize_mx(x, rounding="stochastic", seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    mean = draws[0][:, 1:].double().mean().item()
    wanted = x.bfloat16()[0, 1].double().item()
    assert abs(mean - wanted) < 5 * 0.125 / (4096 * 31) ** 0.5


@devices
@pytest.mark.parametrize(
    ("a_element", "b_element"), [*((e, e) for e in ELEMENTS), ("float8_e4m3fn", "float6_e2m3fn")]
)
def test_mx_mm_multiplies_what_quantisation_gives(device, a_element, b_element):
    a, b = torch.randn(9, 70).to(device), torch.randn(70, 6).to(device)
    got = torch.ops.trn.mx_mm(a, b, a_element=a_element, b_element=b_element)
    x = torch.ops.trn.quantize_dequantize_mx(a, dim=1, element=a_element).double()
    y = torch.ops.trn.quantize_dequantize_mx(b, dim=0, element=b_element).double()
    assert float((got.double() - x @ y).abs().max()) <= 72 * 2.0**-24 * float(
        (x.abs() @ y.abs()).max()
    )


@devices
def test_mx_matmul_takes_codes(device):
    a, b = torch.randn(9, 64).to(device), torch.randn(64, 6).to(device)
    a_codes, a_scales = torch.ops.trn.quantize_mx(a)
    b_codes, b_scales = torch.ops.trn.quantize_mx(b, dim=0)
    got = torch.ops.trn.mx_matmul(a_codes, a_scales, b_codes, b_scales)
    torch.testing.assert_close(got, torch.ops.trn.mx_mm(a, b), rtol=1e-5, atol=1e-5)


@devices
def test_gradients_pass_quantisation_and_requantise_products(device):
    a = torch.randn(8, 64).to(device).requires_grad_()
    b = torch.randn(64, 32).to(device).requires_grad_()
    g = torch.randn(8, 64).to(device)
    torch.ops.trn.quantize_dequantize_mx(a).backward(g)
    assert torch.equal(a.grad, g)
    a.grad = None
    g = torch.randn(8, 32).to(device)
    torch.ops.trn.mx_mm(a, b).backward(g)
    with torch.no_grad():
        assert torch.equal(a.grad, torch.ops.trn.mx_mm(g, b.t()))
        assert torch.equal(b.grad, torch.ops.trn.mx_mm(a.t(), g))


def test_fake_tensors_have_the_real_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    def described(x: Tensor) -> list[tuple[torch.Size, torch.dtype]]:
        made = [torch.ops.trn.quantize_mx(x, dim=1, element=element) for element in ELEMENTS]
        return [(t.shape, t.dtype) for pair in made for t in pair]

    x = torch.randn(3, 70, 8)
    with FakeTensorMode() as mode:
        fake = described(mode.from_tensor(x))
    assert fake == described(x)


@devices
def test_empty_axes_work(device):
    codes, scales = torch.ops.trn.quantize_mx(torch.empty(4, 0, device=device))
    assert codes.shape == (4, 0)
    assert scales.shape == (4, 0)
    codes, scales = torch.ops.trn.quantize_mx(torch.empty(0, 64, device=device))
    assert codes.shape == (0, 64)
    assert scales.shape == (0, 2)


@devices
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"element": "float6"}, 'element "float6" is none of'),
        ({"scale_rule": "up"}, 'scale_rule "up" is none of'),
        ({"grouping": "x"}, "grouping"),
        ({"rounding": "x"}, "rounding"),
        ({"dim": 3}, "Dimension out of range"),
    ],
)
def test_wrong_arguments_are_named(device, arguments, message):
    with pytest.raises((ValueError, IndexError), match=message):
        torch.ops.trn.quantize_mx(torch.ones(2, 32, device=device), **arguments)


@devices
def test_other_formats_are_refused_with_the_remedy(device):
    with pytest.raises(TypeError, match="Convert it first"):
        torch.ops.trn.quantize_mx(torch.ones(2, 32, device=device, dtype=torch.float64))


@devices
@elements
@pytest.mark.parametrize(("n", "k"), [(1, 32), (70, 96), (64, 600), (33, 34)])
def test_few_rows_by_stored_codes_are_those_by_the_widened_matrix(device, element, n, k):
    """Columns as they were quantised are read once; rows of them are widened first."""
    torch.manual_seed(0)
    w = torch.randn(n, k)
    w[0, :3] = torch.tensor([float("nan"), float("inf"), 1e-30])
    codes, scales = torch.ops.trn.quantize_mx(w.to(device), element=element)
    scales.view(torch.uint8)[-1] = 0  # products that are subnormal
    y = torch.ops.trn.dequantize_mx(codes, scales, element=element).double().cpu().t()
    other = scales.view(torch.uint8).t().contiguous().view(scales.dtype)
    for m in (1, 2, 4, 5, 6, 7, 13, 16, 17):
        a, a_scales = torch.ops.trn.quantize_mx(torch.randn(m, k).to(device))
        x = torch.ops.trn.dequantize_mx(a, a_scales).double().cpu()
        for dtype in (torch.float32, torch.bfloat16):
            read, widened = (
                torch.ops.trn.mx_matmul(
                    a, a_scales, codes.t(), each, out_dtype=dtype, b_element=element
                ).cpu()
                for each in (scales.t(), other)
            )
            if m > 4:
                torch.testing.assert_close(read, widened, rtol=0, atol=0, equal_nan=True)
            elif dtype == torch.float32:  # the columns are added along k in another order
                bound = 2 * k * 2.0**-24 * (x.abs() @ y.abs()) + k * 2.0**-126
                near = (read.double() - x @ y).abs() <= bound
                assert bool((near | read.isnan()).all())
                assert torch.equal(read.isnan(), widened.isnan())


@devices
@pytest.mark.parametrize(
    "element", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"]
)
def test_every_stored_code_is_read_as_it_is_dequantised(device, element):
    """A column of each code, under every scale, by rows of one 1 in a block of zeros."""
    bits = 4 if element == "float4_e2m1fn" else 6 if element.startswith("float6") else 8
    codes = torch.arange(256).to(torch.uint8).reshape(8, 32).repeat_interleave(256, 0)
    if bits == 6:
        codes &= 63
    if bits == 4:
        codes = codes[:, :16].contiguous().view(torch.float4_e2m1fn_x2)
    elif bits == 8:
        codes = codes.view(getattr(torch, element))
    scales = torch.arange(256).to(torch.uint8).repeat(8)[:, None].view(torch.float8_e8m0fnu)
    values = torch.ops.trn.dequantize_mx(
        codes.to(device), scales.to(device), element=element
    ).cpu()  # [2048, 32]
    one, ones_scale = torch.ops.trn.quantize_mx(torch.eye(32).to(device))
    b, b_scales = codes.to(device).t(), scales.to(device).t()
    for rows in (slice(0, 3), slice(3, 10), slice(10, 26)):
        got = torch.ops.trn.mx_matmul(
            one[rows].contiguous(), ones_scale[rows].contiguous(), b, b_scales, b_element=element
        ).cpu()
        plain = values.isfinite().all(1)  # 0 times infinity would be NaN
        assert torch.equal(got[:, plain] + 0.0, values.t()[rows][:, plain] + 0.0)
        assert not bool(got[:, ~plain].isfinite().all(0).any())
