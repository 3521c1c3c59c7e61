"""Convolutions with operands in bfloat16, whichever of the host's kernels computes them: results
and both gradients within the bound of float32 sums, for every window, format and thread count.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_trn_emu
from torch_trn_emu import _C
from torch_trn_emu.settings import ISAS

from . import oracle

CASES: dict[str, dict[str, Any]] = {
    #             input, filters [out, in of a group, *kernel] and what differs from the defaults
    "padded": {"x": (3, 64, 12, 13), "w": (64, 64, 3, 3), "padding": 1},
    "plain": {"x": (2, 16, 9, 8), "w": (17, 16, 3, 3)},
    "odd channels": {"x": (2, 35, 7, 7), "w": (49, 35, 3, 3), "padding": 1},
    "pointwise": {"x": (2, 40, 6, 5), "w": (33, 40, 1, 1)},
    "pointwise strided": {"x": (2, 32, 9, 10), "w": (16, 32, 1, 1), "stride": 2},
    "strided": {"x": (2, 32, 12, 11), "w": (48, 32, 3, 3), "stride": 2, "padding": 1},
    "stride skips": {"x": (1, 16, 11, 14), "w": (16, 16, 2, 1), "stride": (3, 5)},
    "dilated": {"x": (1, 24, 14, 15), "w": (20, 24, 3, 3), "dilation": (2, 3), "padding": (2, 1)},
    "all": {"x": (2, 20, 17, 16), "w": (18, 20, 4, 3), "dilation": (1, 2), "padding": (3, 2),
            "stride": (2, 3)},
    "far padding": {"x": (1, 16, 3, 4), "w": (16, 16, 2, 2), "padding": (4, 3), "stride": 3},
    "wide padding": {"x": (1, 16, 5, 5), "w": (16, 16, 1, 1), "padding": 2},
    "groups": {"x": (2, 48, 8, 9), "w": (54, 16, 3, 3), "groups": 3, "padding": 1},
    "depthwise": {"x": (2, 32, 8, 8), "w": (32, 1, 3, 3), "groups": 32, "padding": 1},
    "few channels": {"x": (1, 3, 20, 20), "w": (16, 3, 7, 7), "stride": 2, "padding": 3},
    "line": {"x": (3, 24, 50), "w": (40, 24, 5), "stride": 2, "padding": 2},
    "long line": {"x": (1, 16, 1500), "w": (16, 16, 3), "padding": 1},
    "tall": {"x": (1, 16, 70, 40), "w": (16, 16, 3, 3), "padding": 1},
}  # fmt: skip
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, params=["avx2", "avx512_bf16", "amx_bf16"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """The host's own convolution, and those of the instruction sets that multiply bfloat16."""
    before, level = _C.isa(), ISAS.index(request.param)
    _C.limit_isa(level)
    if _C.isa() == level:
        yield request.param
    else:
        pytest.skip(f"this host has no {request.param}")
    _C.limit_isa(before)


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rounded(x: Tensor) -> Tensor:
    return x.double() if x.dtype == torch.float16 else oracle.to_bf16(x.float())


def window(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name not in "xw"}


def results(x: Tensor, w: Tensor, b: Tensor, g: Tensor | None, **how: Any) -> list[Tensor]:
    """The convolution and the gradients of the image and the filters."""
    convolve = F.conv1d if x.dim() == 3 else F.conv2d
    leaves = [t.detach().clone().requires_grad_() for t in (x, w)]
    y = convolve(*leaves, b, **how)
    g = torch.ones_like(y) if g is None else g
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_within_the_bound(name, dtype):
    case, how = CASES[name], window(CASES[name])
    x, w = draw(case["x"], 0, dtype), draw(case["w"], 1, dtype)
    b = draw(case["w"][:1], 2, dtype)
    convolve = F.conv1d if x.dim() == 3 else F.conv2d
    g = draw(tuple(convolve(x.float(), w.float(), **how).shape), 3, dtype)
    exact = [rounded(t) for t in (x, w)]
    wanted = results(*exact, b.double(), rounded(g), **how)
    sums = results(*(t.abs() for t in exact), b.double().abs(), rounded(g).abs(), **how)
    with torch_trn_emu.precision("mxfp8"):
        got = results(x.trn(), w.trn(), b.trn(), g.trn(), **how)
    lengths = (
        w[0].numel() + 1,
        w.numel() // how.get("groups", 1) // w.size(1),
        g.numel() // g.size(1),
    )
    last_bit = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    for value, want, total, k in zip(got, wanted, sums, lengths, strict=True):
        bound = (k + 2) * 2.0**-24 * total + last_bit * want.abs() + 2.0**-24
        assert value.dtype == dtype
        assert bool(((value.cpu().double() - want).abs() <= bound).all())


@pytest.mark.parametrize("name", ["padded", "strided", "groups", "line"])
def test_no_bit_depends_on_threads_or_the_batch(name, instruction_set):
    if instruction_set == "avx2":
        pytest.skip("the host's own convolution divides its sums by threads")
    case, how = CASES[name], window(CASES[name])
    x, w, b = draw(case["x"], 0).trn(), draw(case["w"], 1).trn(), draw(case["w"][:1], 2).trn()
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch_trn_emu.precision("bf16"):
                found.append(results(x, w, b, None, **how))
                alone = results(x[:1], w, b, None, **how)
            assert torch.equal(found[-1][0][:1].cpu(), alone[0].cpu())
    finally:
        torch.set_num_threads(before)
    for one, other in itertools.pairwise(found):
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e-39], ids=str)
@pytest.mark.parametrize("where", ["x", "w", "g"])
def test_no_zero_of_the_border_meets_what_is_not_finite(where, value):
    """The host's kernels skip the border: so must whatever multiplies by it."""
    tensors = {"x": draw((2, 16, 6, 6), 0), "w": draw((16, 16, 3, 3), 1)}
    tensors["g"] = draw((2, 16, 6, 6), 3)
    tensors[where][0, 1, 0, 0] = value
    b = torch.zeros(16)
    exact = [rounded(t).float() for t in tensors.values()]
    wanted = results(*exact[:2], b, exact[2], padding=1)
    with torch_trn_emu.precision("bf16"):
        x, w, g = (t.trn() for t in tensors.values())
        got = results(x, w, b.trn(), g, padding=1)
    for a, want in zip(got, wanted, strict=True):
        assert torch.equal(a.cpu().isfinite(), want.isfinite())
        assert torch.equal(a.cpu().isnan(), want.isnan())
        finite = want.isfinite()
        assert torch.allclose(a.cpu()[finite], want[finite], rtol=1e-4, atol=1e-4)


def test_channels_last_stays_so():
    x = draw((2, 32, 8, 8), 0).to(memory_format=torch.channels_last)
    w = draw((32, 32, 3, 3), 1)
    wanted = F.conv2d(x, w, padding=1)
    with torch_trn_emu.precision("bf16"):
        got = F.conv2d(x.trn(), w.trn(), padding=1)
    assert got.stride() == wanted.stride()
