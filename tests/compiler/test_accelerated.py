"""Operators that the CPU has no kernel for, in compiled graphs, against eager."""

import torch
from comparing import TORCHS_OWN
from torch.nn import functional as F

pytestmark = TORCHS_OWN

MX = F.ScalingType.BlockWise1x32


def test_scaled_and_grouped_products_forward_and_backward():
    """One graph for all: each is the same kernel as in eager mode."""
    a = torch.randn(64, 64).to(torch.float8_e4m3fn).to("trn")
    scales = torch.randint(124, 130, (64, 2), dtype=torch.uint8)
    scales = scales.view(torch.float8_e8m0fnu).to("trn")
    offs = torch.tensor([4, 4, 10], dtype=torch.int32).to("trn")
    x = torch.randn(10, 64, dtype=torch.bfloat16).to("trn").requires_grad_()
    w = torch.randn(3, 64, 32, dtype=torch.bfloat16).to("trn").requires_grad_()

    def everything(a, scales, x, w, offs):
        scaled = F.scaled_mm(a, a.t(), scales, MX, scales, MX)
        wide = torch.bmm(w.detach(), w.detach().mT, out_dtype=torch.float32)
        return scaled, wide, F.grouped_mm(x, w, offs=offs)

    def gradients(run):
        out = run(a, scales, x, w, offs)
        return [*out, *torch.autograd.grad(out[-1].float().square().sum(), (x, w))]

    compiled = torch.compile(everything, backend="trn", options={"strict": True})
    for got, expected in zip(gradients(compiled), gradients(everything), strict=True):
        assert torch.equal(got, expected)
