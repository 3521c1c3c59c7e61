"""Fused producers: torch's values within float32 arithmetic, and the codes of just those values."""

import pytest
import torch
import torch.nn.functional as F
from oracles import DEVICE, DTYPES, assert_same_bits, bits, draw

from torch_trn_emu.triton import activations, norms

SHAPES = ((3, 70), (2, 5, 33), (1, 1), (2, 4500), (4, 0), (0, 32))
LAST_BIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def cases(x, w, b):
    """By name: the kernel, its arguments, what torch gives in float64, and the operator."""
    wide, k = x.double(), x.shape[-1]
    tanh = {"approximate": "tanh"}
    rows = {
        "gelu": ("gelu_mx", (x,), {}, F.gelu(wide)),
        "gelu tanh": ("gelu_mx", (x,), tanh, F.gelu(wide, **tanh)),
        "silu": ("silu_mx", (x,), {}, F.silu(wide)),
        "rms_norm": (
            "rms_norm_mx", (x, w), {"eps": 1e-3}, F.rms_norm(wide, (k,), w.double(), 1e-3),
        ),
        "layer_norm": (
            "layer_norm_mx", (x, w, b), {}, F.layer_norm(wide, (k,), w.double(), b.double()),
        ),
        "without weight": ("layer_norm_mx", (x,), {}, F.layer_norm(wide, (k,))),
    }  # fmt: skip
    return {
        key: (kernel_of(name), *rest, getattr(torch.ops.trn, name))
        for key, (name, *rest) in rows.items()
    }


def kernel_of(name):
    return getattr(norms if "norm" in name else activations, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("element", ["float8_e4m3fn", "float4_e2m1fn"])
def test_values_and_codes(element, shape, dtype):
    x, w, b = (draw(*s, dtype=dtype, spread=1) for s in (shape, shape[-1:], shape[-1:]))
    for name, (kernel, given, how, want, operator) in cases(x, w, b).items():
        on = [t.to(DEVICE) for t in given]
        y, codes, scales = kernel(*on, element=element, **how)
        # A few roundings in float32 of numbers no larger than these, and the last one.
        size = max(1.0, float(x.abs().max()), float(want.abs().max()))
        bound = 16 * 2.0**-24 * size + LAST_BIT[dtype] * want.abs()
        assert bool(((y.cpu().double() - want).abs() <= bound).all()), name
        want_codes, want_scales = torch.ops.trn.quantize_mx(y.cpu(), element=element)
        assert_same_bits(codes, want_codes)
        assert_same_bits(scales, want_scales)
        made = operator(*given, element=element, **how)
        assert [t.shape for t in made] == [y.shape, codes.shape, scales.shape]
        assert [t.dtype for t in made] == [y.dtype, codes.dtype, scales.dtype]
        assert bool(((made[0].double() - want).abs() <= 2 * bound + 2 * LAST_BIT[dtype]).all()), (
            name
        )


def operands(x, w, b, gate):
    """By name: the kernel, its operator, their tensors and what else they take."""
    rows = {
        "gelu": ("gelu_operand", (x,), {}),
        "gelu tanh, gated": ("gelu_operand", (x, gate), {"approximate": "tanh"}),
        "silu": ("silu_operand", (x,), {}),
        "silu, gated": ("silu_operand", (x, gate), {}),
        "rms_norm": ("rms_norm_operand", (x, w), {"eps": 1e-3}),
        "rounded before the weight": ("rms_norm_operand", (x, w), {"round_before_weight": True}),
        "layer_norm": ("layer_norm_operand", (x, w, b), {}),
        "without weight": ("layer_norm_operand", (x,), {}),
    }
    return {
        key: (kernel_of(name), getattr(torch.ops.trn, name), *rest)
        for key, (name, *rest) in rows.items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "format"), [*((s, "mxfp8") for s in SHAPES[:4]), (SHAPES[1], "mxfp4")], ids=str
)
def test_operands_are_the_results_rounded(shape, dtype, format):
    x, gate = (draw(*shape, dtype=dtype, spread=1, seed=s) for s in (0, 1))
    w, b = (draw(shape[-1], dtype=dtype, spread=1, seed=s) for s in (2, 3))
    for name, (kernel, operator, given, how) in operands(x, w, b, gate).items():
        on = [t.to(DEVICE) for t in given]
        operand, y, *statistics = kernel(*on, format=format, **how)
        flat = y.cpu().reshape(-1, shape[-1])
        assert_same_bits(
            operand.cpu().view(flat.shape), torch.ops.trn.round_operand(flat, format, -1)
        )
        alone, nothing, *_ = kernel(*on, format=format, keep=False, **how)
        assert nothing is None
        assert torch.equal(bits(alone), bits(operand)), name
        want = operator(*given, format=format, **how)
        size = 4 * max(1.0, float(want[1].abs().max()))  # gates and weights are of order 4
        error = (y.cpu().double() - want[1].double()).abs().max()
        assert float(error) <= (2 * LAST_BIT[dtype] + 16 * 2.0**-24) * size, name
        for got, wanted in zip(statistics, want[2:], strict=True):
            assert got.shape == wanted.shape == (*shape[:-1], 1)
            torch.testing.assert_close(got.cpu(), wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["rms_norm_operand", "layer_norm_operand"])
def test_float32_parameters_of_a_16_bit_input(name):
    """As autocast has them: float32 throughout, rounded once."""
    x, w = draw(3, 70, dtype=torch.bfloat16, spread=1), draw(70, spread=1, seed=1)
    kernel, operator = kernel_of(name), getattr(torch.ops.trn, name)
    got, want = kernel(x.to(DEVICE), w.to(DEVICE)), operator(x, w)
    assert [t.dtype for t in got] == [t.dtype for t in want]
    assert got[1].dtype is torch.bfloat16
    torch.testing.assert_close(got[1].cpu(), want[1], rtol=2.0**-7, atol=2.0**-7)


@pytest.mark.parametrize("layout", ["chunked", "transposed", "expanded"])
def test_strided_inputs_give_what_contiguous_ones_give(layout):
    made = {
        "chunked": draw(2, 5, 140, spread=1).chunk(2, -1),  # both halves of one product
        "transposed": draw(2, 70, 5, spread=1).mT.chunk(1),
        "expanded": (draw(1, 70, spread=1).expand(5, 70),),
    }[layout]
    x, gate = (t.to(DEVICE) for t in (made[0], made[-1]))
    for kernel, given in ((activations.silu_operand, (x, gate)), (norms.layer_norm_operand, (x,))):
        got, want = kernel(*given), kernel(*(t.contiguous() for t in given))
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("shape", SHAPES[4:], ids=str)
def test_empty_inputs(shape):
    x = torch.empty(shape, device=DEVICE)
    for y, codes, scales in (activations.gelu_mx(x), norms.layer_norm_mx(x), norms.rms_norm_mx(x)):
        assert y.shape == codes.shape == x.shape
        assert scales.shape == (shape[0], -(-shape[1] // 32))


def test_a_poisoned_row_is_nan():
    x = torch.ones(2, 64, device=DEVICE)
    x[1, 3] = float("nan")
    _, codes, scales = activations.silu_mx(x)
    assert scales.view(torch.uint8).tolist()[1] == [0xFF, scales.view(torch.uint8)[0, 0].item()]
    assert (codes.view(torch.uint8)[1, :32] == 0x7F).all()


def test_what_does_not_fit_is_refused():
    x = torch.ones(2, 32, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"weight has shape \[3\], not \[32\]"):
        norms.rms_norm_mx(x, x[0, :3])
    with pytest.raises(RuntimeError, match="approximate"):
        activations.gelu_mx(x, "cubic")
    with pytest.raises(TypeError, match="Convert it first"):
        activations.silu_mx(x.double())
    with pytest.raises(RuntimeError, match=r"the gate is \[2\], the input \[2, 32\]"):
        activations.silu_operand(x, x[:, 0])
    with pytest.raises(ValueError, match="none of MX"):
        norms.layer_norm_operand(x, format="bf16")


def test_on_trn_they_are_made_of_the_operators():
    x = draw(3, 70, spread=1)
    for got, want in zip(torch.ops.trn.gelu_mx(x.trn()), torch.ops.trn.gelu_mx(x), strict=True):
        assert got.device.type == "trn"
        assert_same_bits(got.cpu(), want)
