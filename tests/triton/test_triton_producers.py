"""Fused producers: torch's values within float32 arithmetic, and the codes of just those values."""

import pytest
import torch
import torch.nn.functional as F
from oracles import DEVICE, DTYPES, assert_same_bits, draw

from torch_trn_emu.triton import producers as p

SHAPES = ((3, 70), (2, 5, 33), (1, 1), (2, 4500), (4, 0), (0, 32))
LAST_BIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def cases(x, w, b):
    """By name: the kernel, its arguments, what torch gives in float64, and the operator."""
    wide, k = x.double(), x.shape[-1]
    trn = torch.ops.trn
    return {
        "gelu": (p.gelu_mx, (x,), {}, F.gelu(wide), trn.gelu_mx),
        "gelu tanh": (
            p.gelu_mx, (x,), {"approximate": "tanh"}, F.gelu(wide, approximate="tanh"), trn.gelu_mx,
        ),
        "silu": (p.silu_mx, (x,), {}, F.silu(wide), trn.silu_mx),
        "rms_norm": (
            p.rms_norm_mx, (x, w), {"eps": 1e-3}, F.rms_norm(wide, (k,), w.double(), 1e-3),
            trn.rms_norm_mx,
        ),
        "layer_norm": (
            p.layer_norm_mx, (x, w, b), {}, F.layer_norm(wide, (k,), w.double(), b.double()),
            trn.layer_norm_mx,
        ),
        "without weight": (p.layer_norm_mx, (x,), {}, F.layer_norm(wide, (k,)), trn.layer_norm_mx),
    }  # fmt: skip


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


@pytest.mark.parametrize("shape", SHAPES[4:], ids=str)
def test_empty_inputs(shape):
    x = torch.empty(shape, device=DEVICE)
    for y, codes, scales in (p.gelu_mx(x), p.layer_norm_mx(x), p.rms_norm_mx(x)):
        assert y.shape == codes.shape == x.shape
        assert scales.shape == (shape[0], -(-shape[1] // 32))


def test_a_poisoned_row_is_nan():
    x = torch.ones(2, 64, device=DEVICE)
    x[1, 3] = float("nan")
    _, codes, scales = p.silu_mx(x)
    assert scales.view(torch.uint8).tolist()[1] == [0xFF, scales.view(torch.uint8)[0, 0].item()]
    assert (codes.view(torch.uint8)[1, :32] == 0x7F).all()


def test_what_does_not_fit_is_refused():
    x = torch.ones(2, 32, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"weight has shape \[3\], not \[32\]"):
        p.rms_norm_mx(x, x[0, :3])
    with pytest.raises(RuntimeError, match="approximate"):
        p.gelu_mx(x, "cubic")
    with pytest.raises(TypeError, match="Convert it first"):
        p.silu_mx(x.double())


def test_on_trn_they_are_made_of_the_operators():
    x = draw(3, 70, spread=1)
    for got, want in zip(torch.ops.trn.gelu_mx(x.trn()), torch.ops.trn.gelu_mx(x), strict=True):
        assert got.device.type == "trn"
        assert_same_bits(got.cpu(), want)
