"""What the kernels' tests share: where they run, what they draw, and equality of bits."""

import torch
from torch import Tensor

from torch_trn_emu.formats import SCALE_RULES
from torch_trn_emu.triton.launch import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ELEMENTS = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")
RULES = tuple(SCALE_RULES)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def bits(x: Tensor) -> Tensor:
    return x.cpu().view(_INTEGERS[x.element_size()])


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    assert got.dtype is want.dtype
    assert got.shape == want.shape
    assert torch.equal(bits(got), bits(want))


def draw(
    *shape: int, dtype: torch.dtype = torch.float32, spread: int = 14, seed: int = 0
) -> Tensor:
    """Normal values over 2 * spread binades, with zeros among them."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(shape, generator=generator)
    scale = torch.exp2(torch.randint(-spread, spread + 1, shape, generator=generator).float())
    return torch.where(torch.rand(shape, generator=generator) < 0.05, 0.0, x * scale).to(dtype)
