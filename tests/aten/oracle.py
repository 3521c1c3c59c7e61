"""A product under a policy, by definition: operands rounded in numpy, multiplied in float64."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torch_trn_emu.formats import FORMATS
from torch_trn_emu.formats.codec import decode, encode
from torch_trn_emu.formats.mx import MX_FORMATS, dequantize_mx, quantize_mx

UNIT_ROUNDOFF = 2.0**-24  # float32


def to_bf16(x: Tensor) -> Tensor:
    """float64 [*] of the bfloat16 values nearest to x; 16-bit formats are exact."""
    if x.dtype is not torch.float32:
        return x.double()
    return torch.from_numpy(
        decode(FORMATS["bfloat16"], encode(FORMATS["bfloat16"], x.double().numpy()))
    )


def to_mx(name: str, x: Tensor, dim: int) -> Tensor:
    """float64 values of x quantised in blocks of 32 along `dim`, through bfloat16."""
    moved = to_bf16(x).movedim(dim, -1).numpy()
    codes, scales = quantize_mx(moved, MX_FORMATS[name])
    return torch.from_numpy(dequantize_mx(codes, scales, MX_FORMATS[name])).movedim(-1, dim)


@dataclass(frozen=True)
class Rounded:
    """How a policy rounds the operands of one product."""

    first: str
    second: str

    def apply(self, a: Tensor, b: Tensor, b_dim: int = -2) -> tuple[Tensor, Tensor]:
        return round_operand(self.first, a, -1), round_operand(self.second, b, b_dim)


def round_operand(how: str, x: Tensor, dim: int) -> Tensor:
    if how == "as given":
        return x.double()
    return to_bf16(x) if how == "bf16" else to_mx(how, x, dim)


GIVEN, BF16 = Rounded("as given", "as given"), Rounded("bf16", "bf16")
MXFP8, MXFP4 = Rounded("mxfp8", "mxfp8"), Rounded("mxfp8", "mxfp4")

# policy -> (linear, gradient of a weight, attention)
POLICIES = {
    "fp32": (GIVEN, GIVEN, GIVEN),
    "bf16": (BF16, BF16, BF16),
    "mxfp8": (MXFP8, MXFP8, BF16),
    "mxfp8_all": (MXFP8, MXFP8, MXFP8),
    "mxfp4": (MXFP4, MXFP8, BF16),
} | {
    name: (Rounded(name, name), Rounded(name, name), BF16)
    for name in ("mxfp6_e2m3", "mxfp6_e3m2", "mxint8")
}


def assert_product(got: Tensor, a: Tensor, b: Tensor, added: Tensor | float = 0.0) -> None:
    """`got` is a b + added with float32 sums, rounded once to its dtype. a, b: rounded, float64."""
    exact = a @ b + added
    magnitude = a.abs() @ b.abs() + (added.abs() if isinstance(added, Tensor) else abs(added))
    terms = a.shape[-1] + 2
    bound = terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF) * magnitude
    last_bit = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[
        got.dtype
    ]
    bound = bound + (exact.abs() + bound) * last_bit + np.finfo(np.float32).tiny
    error = (got.cpu().double() - exact).abs()
    worst = torch.where(error <= bound, 0.0, error / bound).amax() if error.numel() else 0.0
    assert worst == 0.0, f"the error is {worst:.3g} times the bound"
