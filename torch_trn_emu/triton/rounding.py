"""Stochastic rounding of float32 to what the engines write: bfloat16, float16 and 8-bit floats.

The contract is that of csrc/numerics `convert` and `encode`, bit for bit.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bits import MAGNITUDE, SIGN, float_bits, random_words, round_stochastic
from .formats import ELEMENTS
from .launch import INTERPRETED, cdiv, launch, raw

__all__ = ["ROUNDED", "stochastic_round"]


class Target(NamedTuple):
    """How a dtype's codes follow from its bits; `over` is the code of what does not fit."""

    bits: int
    mantissa_bits: int
    min_field: int
    max_code: int
    over: int
    nan: int


def _target(name: str) -> Target:
    e = ELEMENTS[name]
    largest = (e.infinity_code if e.infinity_code < 256 else e.nan_code) - 1
    return Target(8, e.mantissa_bits, e.min_field, largest, largest, e.nan_code)


# dtype -> target; 16-bit formats overflow to infinity, 8-bit ones saturate.
ROUNDED = {
    torch.bfloat16: Target(16, 7, 1, 0x7F7F, 0x7F80, 0x7FC0),
    torch.float16: Target(16, 10, 113, 0x7BFF, 0x7C00, 0x7E00),
    torch.float8_e4m3fn: _target("float8_e4m3fn"),
    torch.float8_e5m2: _target("float8_e5m2"),
}


@triton.jit
def round_at(
    x, y, count, i, random,
    BITS: tl.constexpr, M: tl.constexpr, MIN_FIELD: tl.constexpr, MAX_CODE: tl.constexpr,
    OVER: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    """y[i] = x[i] rounded with these random words."""
    bits = float_bits(tl.load(x + i, mask=i < count, other=0))
    magnitude = bits & MAGNITUDE
    code = round_stochastic(magnitude, random, M, MIN_FIELD)
    code = tl.where((code > MAX_CODE) | (magnitude == 0x7F800000), OVER, code)
    code = tl.where(magnitude > 0x7F800000, NAN, code).to(tl.uint32)
    code = code | ((bits & SIGN) >> (32 - BITS))
    tl.store(y + i, code.to(y.dtype.element_ty), mask=i < count)


@triton.jit
def round_kernel(
    x, y, count, seed, offset,
    GROUPS: tl.constexpr, BITS: tl.constexpr, M: tl.constexpr, MIN_FIELD: tl.constexpr,
    MAX_CODE: tl.constexpr, OVER: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    """y = x rounded stochastically; x float32, y raw codes.

    The four words of a counter belong to elements 16 apart, of a group of 64: none is drawn twice.
    """
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, 16)[None, :]
    at = tl.full([], 0, tl.int64) + offset
    w0, w1, w2, w3 = random_words(seed, at, group * 16 + lane)
    i = group * 64 + lane
    round_at(x, y, count, i, w0, BITS, M, MIN_FIELD, MAX_CODE, OVER, NAN)
    round_at(x, y, count, i + 16, w1, BITS, M, MIN_FIELD, MAX_CODE, OVER, NAN)
    round_at(x, y, count, i + 32, w2, BITS, M, MIN_FIELD, MAX_CODE, OVER, NAN)
    round_at(x, y, count, i + 48, w3, BITS, M, MIN_FIELD, MAX_CODE, OVER, NAN)


def stochastic_round(
    x: torch.Tensor, dtype: torch.dtype, seed: int, offset: int = 0
) -> torch.Tensor:
    """x rounded stochastically: up with the probability that keeps the mean of each element.

    x        float32, any shape; elements are numbered as in a contiguous tensor
    dtype    bfloat16, float16 (beyond the largest: infinity), float8_e4m3fn, float8_e5m2 (saturate)
    seed, offset   choose the bits; take a fresh offset for each result

    Raises TypeError for other dtypes.
    """
    if x.dtype is not torch.float32 or dtype not in ROUNDED:
        raise TypeError(
            "stochastic_round takes float32 and gives bfloat16, float16, float8_e4m3fn or "
            f"float8_e5m2, got {str(x.dtype).removeprefix('torch.')} to "
            f"{str(dtype).removeprefix('torch.')}"
        )
    x = x.resolve_neg().contiguous()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    groups = 1 << 12 if INTERPRETED else 64  # of 64 elements, 32 a thread
    target = ROUNDED[dtype]
    stored = raw(y).view(torch.int16) if target.bits == 16 else raw(y)
    launch(
        round_kernel,
        (cdiv(x.numel(), 64 * groups),),
        x,
        stored,
        x.numel(),
        seed,
        offset,
        GROUPS=groups,
        BITS=target.bits,
        M=target.mantissa_bits,
        MIN_FIELD=target.min_field,
        MAX_CODE=target.max_code,
        OVER=target.over,
        NAN=target.nan,
    )
    return y
