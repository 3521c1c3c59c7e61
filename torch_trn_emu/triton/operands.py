"""Operands of a product: what becomes of their values on the way from memory into `dot`."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..formats import MX_FORMATS
from .bits import (
    INFINITY,
    MAGNITUDE,
    QUIET_NAN,
    SIGN,
    bf16_bits,
    decode,
    float_bits,
    mx_value,
    scale_value,
    through_bf16,
)
from .formats import element_of, named
from .launch import raw
from .quantize import Spec, dequantize_mx, is_column_major, plain, values

__all__ = ["FORMATS", "Operand", "load_operand", "operand_of", "quantize_values"]

# The names of operand formats, and the elements of those that are MX.
FORMATS = {"as_given": "", "bf16": ""} | {row.name: row.element.name for row in MX_FORMATS.values()}


class Operand(NamedTuple):
    """[batch, rows, cols], and what becomes of its values on the way into a product."""

    x: torch.Tensor
    mx: Spec | None = None  # blocks along the contraction
    to_bf16: bool = False  # float32 is rounded to bfloat16

    scales: torch.Tensor | None = None  # then x holds codes, in blocks along the contraction
    wrapped: bool = False  # of codes

    @property
    def multiplied(self) -> torch.dtype:
        """The dtype of the values that are multiplied."""
        return torch.bfloat16 if self.kind else self.x.dtype

    @property
    def kind(self) -> int:
        """0 as it is, 1 rounded to bfloat16, 2 quantised, 3 codes: as `load_operand` knows them."""
        if self.scales is not None:
            return 3
        return 2 if self.mx is not None else int(self.to_bf16)

    @property
    def groups_wrapped(self) -> bool:
        return self.wrapped or (self.mx is not None and self.mx.wrapped)

    def shape(self, k_dim: int) -> list[int]:
        """Of the values: 4-bit codes lie two in a byte along the contraction."""
        shape = list(self.x.shape)
        if self.scales is not None and element_of(self.x).bits == 4:
            shape[k_dim] *= 2
        return shape

    def rounded(self, k_dim: int) -> "Operand":
        """Its values as they are multiplied, in memory."""
        if self.scales is not None:
            grouping = "wrapped" if self.wrapped else "contiguous"
            return Operand(dequantize_mx(self.x, self.scales, k_dim, torch.bfloat16, grouping))
        if self.mx is not None:
            return Operand(quantize_values(self.x, self.mx, k_dim))
        return Operand(self.x.to(torch.bfloat16)) if self.to_bf16 else self

    def arguments(self) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...], tuple[int, ...]]:
        """Values or codes, scales, and their strides as of a batch; x stands for no scales."""
        scales = self.x if self.scales is None else self.scales
        x, scales = (t[None] if t.dim() == 2 else t for t in (self.x, scales))
        return raw(x), raw(scales), x.stride(), scales.stride()

    def constants(self, prefix: str) -> dict[str, Any]:
        spec = self.mx or Spec.of("float8_e4m3fn", "trn3", "nearest_even", "contiguous", 0)
        element = spec.element if self.scales is None else element_of(self.x)
        made = {
            "KIND": self.kind,
            "WIDE": self.x.dtype is torch.float32,
            **spec.constants(),
            "M": element.mantissa_bits,
            "BITS": element.bits,
            "BIAS": element.bias,
            "NAN": element.nan_code,
            "INF": element.infinity_code,
        }
        return {f"{prefix}{name}": value for name, value in made.items()}


@triton.jit
def load_codes(
    pointers, inside, scale_pointers, in_scales, at_k,
    ROWS: tl.constexpr, COLS: tl.constexpr, K_AXIS: tl.constexpr, BITS: tl.constexpr,
    M: tl.constexpr, BIAS: tl.constexpr, NAN: tl.constexpr, INF: tl.constexpr,
):  # fmt: skip
    """float32 bits of the values of a tile of codes; at_k tells which half of a byte is meant."""
    code = tl.load(pointers, mask=inside, other=0).to(tl.uint32)
    if BITS == 4:
        code = (code >> (at_k % 2 * 4).to(tl.uint32)) & 15
    scale = scale_value(tl.load(scale_pointers, mask=in_scales, other=0).to(tl.uint32))
    value = decode(code & ((1 << (BITS - 1)) - 1), M, BIAS, NAN, INF)
    if K_AXIS == 1:
        value = tl.reshape(value, [ROWS, COLS // 32, 32]) * scale[:, :, None]
    else:
        value = tl.reshape(value, [ROWS // 32, 32, COLS]) * scale[:, None, :]
    bits = tl.reshape(value, [ROWS, COLS]).to(tl.uint32, bitcast=True)
    signed = bits | ((code << (32 - BITS)) & SIGN)
    return tl.where(bits > INFINITY, QUIET_NAN, signed).to(tl.uint32)


@triton.jit
def as_operand(bits, KIND: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 bits as dot takes them: rounded to bfloat16, which changes no MX value."""
    if INTERPRETED:  # its dot reads bfloat16 as integers: multiply the same values in float32
        if KIND == 0:
            return bits.to(tl.float32, bitcast=True)
        else:
            return (bf16_bits(bits).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return bf16_bits(bits).to(tl.bfloat16, bitcast=True)


@triton.jit
def load_operand(
    pointers,
    inside,
    scale_pointers,
    in_scales,
    at_k,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    K_AXIS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    KIND: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    ROUND: tl.constexpr,
    SUBTRACT: tl.constexpr,
    BITS: tl.constexpr,
    BIAS: tl.constexpr,
    NAN: tl.constexpr,
    INF: tl.constexpr,
):
    """A tile as dot takes it: KIND 0 as it is stored, 1 in bfloat16, 2 quantised, 3 decoded."""
    if KIND == 3:
        bits = load_codes(
            pointers, inside, scale_pointers, in_scales, at_k,
            ROWS, COLS, K_AXIS, BITS, M, BIAS, NAN, INF,
        )  # fmt: skip
        value = as_operand(bits, KIND, INTERPRETED)
    else:
        loaded = tl.load(pointers, mask=inside, other=0)
        if KIND == 0 and not INTERPRETED:
            if loaded.dtype == tl.int16:
                value = loaded.to(tl.bfloat16, bitcast=True)
            else:
                value = loaded
        else:
            bits = float_bits(loaded)
            if KIND == 2:
                if WIDE:  # a NaN may carry beyond the sign: any NaN does
                    magnitude = tl.minimum(through_bf16(bits & MAGNITUDE), QUIET_NAN)
                    bits = magnitude | (bits & SIGN)
                if K_AXIS == 1:
                    blocks = tl.reshape(bits, [ROWS, COLS // 32, 32])
                else:
                    blocks = tl.reshape(bits, [ROWS // 32, 32, COLS])
                AXIS: tl.constexpr = 2 if K_AXIS == 1 else 1
                blocks = mx_value(blocks, AXIS, M, MIN_FIELD, MAX_BITS, FACTOR, ROUND, SUBTRACT)
                bits = tl.reshape(blocks, [ROWS, COLS])
            value = as_operand(bits, KIND, INTERPRETED)
    return value


def operand_of(x: torch.Tensor, format: str) -> Operand:
    x = x.resolve_neg()
    if element := named(FORMATS, format, "trn: operand format"):
        return Operand(x, Spec.of(element, "trn3", "nearest_even", "contiguous", 0))
    return Operand(x, to_bf16=format == "bf16" and x.dtype is torch.float32)


def quantize_values(x: torch.Tensor, spec: Spec, dim: int) -> torch.Tensor:
    """[.., k, ..] -> the same values as MX gives, in bfloat16, which holds them exactly."""
    x = plain(x)
    dim %= x.dim()
    if is_column_major(x):
        return values(x.t(), spec, 1 - dim, torch.bfloat16).t()
    return values(x, spec, dim, torch.bfloat16)
