"""What producers fused with MX quantisation share: loading rows, rounding and storing the result.

A producer is an activation or a norm whose result feeds a product. One pass over memory rounds it
along its last axis, bit for bit as `quantize_mx` and `round_operand` round it; it is computed in
float32 and rounded once to the input's dtype. `*_mx` gives it with codes and scales. `*_operand` is
what compiled graphs ask for: the values of those codes in bfloat16, which a product takes as given,
and the result itself where something else reads it.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .bits import (
    MAGNITUDE,
    QUIET_NAN,
    SIGN,
    bf16_bits,
    encode_nearest,
    float_bits,
    in_units_of,
    scale_code,
    scale_value,
    store_rounded,
    through_bf16,
)
from .formats import named, packed, scale_count
from .launch import raw
from .operands import FORMATS
from .quantize import Spec, check_source

__all__ = [
    "Kept",
    "Outputs",
    "Produced",
    "load_rows",
    "matrix",
    "mx_spec",
    "operand_spec",
    "round_as",
    "store_produced",
]

Produced = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Kept = torch.Tensor | None  # the result, where it was asked for


@triton.jit
def round_as(value, pointer):
    """float32 bits of `value` rounded to what `pointer` holds; int16 is bfloat16."""
    bits = value.to(tl.uint32, bitcast=True)
    if pointer.dtype.element_ty == tl.int16:
        return bf16_bits(bits).to(tl.uint32) << 16
    else:
        return float_bits(value.to(pointer.dtype.element_ty))


@triton.jit
def load_rows(x, x_row, rows, at_k, m, k):
    """float32 [rows, at_k] of x [m, k], whose rows lie x_row elements apart; zeros outside."""
    inside = (rows[:, None] < m) & (at_k[None, :] < k)
    bits = float_bits(tl.load(x + rows[:, None] * x_row + at_k[None, :], mask=inside, other=0))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def store_codes(
    code, sign, scale, to, scales, rows, first, m, k, width,
    ROWS: tl.constexpr, COLS: tl.constexpr, BITS: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    """Codes and scales of a tile [ROWS, COLS // 32, 32]; a row's codes take `width` bytes."""
    code = tl.where(scale == 255, NAN, code | (sign >> (32 - BITS))).to(tl.uint32)
    if BITS == 4:
        shift = (tl.arange(0, 2) * 4)[None, None, :].to(tl.uint32)
        code = tl.sum(tl.reshape(code, [ROWS, COLS // 2, 2]) << shift, 2)
        byte = first // 2 + tl.arange(0, COLS // 2)
    else:
        code = tl.reshape(code, [ROWS, COLS])
        byte = first + tl.arange(0, COLS)
    inside = (rows[:, None] < m) & (byte[None, :] < width)
    tl.store(to + rows[:, None] * width + byte[None, :], code.to(tl.uint8), mask=inside)
    group = first // 32 + tl.arange(0, COLS // 32)
    at = rows[:, None] * tl.cdiv(k, 32) + group[None, :]
    inside = (rows[:, None] < m) & (group[None, :] * 32 < k)
    tl.store(scales + at, tl.reshape(scale, [ROWS, COLS // 32]).to(tl.uint8), mask=inside)


@triton.jit
def store_produced(
    value, y, to, scales, rows, first, m, k, width,
    ROWS: tl.constexpr, COLS: tl.constexpr, KEEP: tl.constexpr, CODES: tl.constexpr,
    BITS: tl.constexpr, NAN: tl.constexpr, M: tl.constexpr, MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr, FACTOR: tl.constexpr, ROUND: tl.constexpr, SUBTRACT: tl.constexpr,
):  # fmt: skip
    """Stores a float32 tile [ROWS, COLS] at (rows, first) of y [m, k], rounded as y is (KEEP).

    To `to` go the MX codes of what was rounded, with scales (CODES), or their values in bfloat16.
    """
    at_k = first + tl.arange(0, COLS)
    inside = (rows[:, None] < m) & (at_k[None, :] < k)
    bits = tl.where(inside, round_as(value, y), 0).to(tl.uint32)
    flat = rows[:, None] * k + at_k[None, :]
    if KEEP:
        store_rounded(y + flat, bits, inside)
    magnitude = bits & MAGNITUDE
    if y.dtype.element_ty == tl.float32:
        magnitude = through_bf16(magnitude)
    magnitude = tl.reshape(magnitude, [ROWS, COLS // 32, 32])
    sign = tl.reshape(bits & SIGN, [ROWS, COLS // 32, 32])
    scale = scale_code(tl.max(magnitude, 2, keep_dims=True), FACTOR, ROUND, SUBTRACT)
    code, units = encode_nearest(in_units_of(scale, magnitude, MAX_BITS), M, MIN_FIELD)
    if CODES:
        store_codes(
            code, sign, scale, to, scales, rows, first, m, k, width, ROWS, COLS, BITS, NAN
        )  # fmt: skip
    else:
        exact = (units * scale_value(scale)).to(tl.uint32, bitcast=True) | sign
        exact = tl.where(scale == 255, QUIET_NAN, exact).to(tl.uint32)
        store_rounded(to + flat, tl.reshape(exact, [ROWS, COLS]), inside)


class Outputs(NamedTuple):
    """What a kernel stores: the result (or nothing), and its codes and scales or their values."""

    y: Kept
    to: torch.Tensor
    scales: torch.Tensor | None

    @classmethod
    def of(cls, x: torch.Tensor, spec: Spec, codes: bool, keep: bool) -> "Outputs":
        *outer, k = x.shape

        def empty(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty((*outer, width), dtype=dtype, device=x.device)

        y = empty(k, x.dtype) if keep else None
        if not codes:
            return cls(y, empty(k, torch.bfloat16), None)
        stored = empty(packed(spec.element, k), spec.element.codes_dtype)
        return cls(y, stored, empty(scale_count(k, False), torch.float8_e8m0fnu))

    def arguments(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As the kernels take them: x stands for what is not stored, for y by its dtype."""
        return tuple(raw(x if t is None else t) for t in (self.y, self.to, self.scales))

    def constants(self, spec: Spec) -> dict[str, Any]:
        kinds = {"KEEP": self.y is not None, "CODES": self.scales is not None}
        return {
            **kinds,
            "BITS": spec.element.bits,
            "NAN": spec.element.nan_code,
            **spec.constants(),
        }

    @property
    def width(self) -> int:
        """Elements, or bytes of codes, in a row of what is stored."""
        return self.to.shape[-1]

    def produced(self) -> Produced:
        assert self.y is not None
        assert self.scales is not None
        return self.y, self.to, self.scales


def mx_spec(element: str, scale_rule: str) -> Spec:
    return Spec.of(element, scale_rule, "nearest_even", "contiguous", 0)


def operand_spec(format: str) -> Spec:
    element = named(FORMATS, format, "trn: operand format")
    if not element:
        raise ValueError(f'trn: operand format "{format}" is none of MX')
    return mx_spec(element, "trn3")


def matrix(x: torch.Tensor, what: str) -> torch.Tensor:
    """[m, k] with the elements of a row side by side; a copy only where no view does it."""
    check_source(x.dtype, what)
    if x.dim() == 0:
        raise RuntimeError(f"{what}: a zero-dimensional tensor has no axis to block")
    x = x.resolve_neg().reshape(x.shape[:-1].numel(), x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()
