"""MX quantisation, dequantisation and both in one pass, over any axis, layout and grouping.

The contract is that of `torch.ops.trn.quantize_mx` and its neighbours in csrc/aten/mx_ops.cpp, bit
for bit. One kernel sees every tensor as [batch, k, others] with three strides: a tile is
[groups, 32, others], so that a block is an axis of it whichever axis it lies along.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .bits import (
    MAGNITUDE,
    QUIET_NAN,
    SIGN,
    byte_index,
    decode,
    encode_nearest,
    encode_stochastic,
    float_bits,
    group_index,
    in_units_of,
    random_word,
    scale_code,
    scale_value,
    store_rounded,
    through_bf16,
    tile_and_batch,
)
from .formats import (
    GROUPINGS,
    ROUNDINGS,
    Element,
    Scale,
    element_named,
    element_of,
    named,
    packed,
    scale_constants,
    scale_count,
)
from .launch import INTERPRETED, cdiv, launch, power_of_two, raw

__all__ = [
    "Blocks",
    "Spec",
    "check_codes",
    "check_source",
    "dequantize_mx",
    "is_column_major",
    "plain",
    "quantize_dequantize_mx",
    "quantize_mx",
    "values",
]

SOURCES = (torch.float32, torch.bfloat16, torch.float16)


class Spec(NamedTuple):
    """What a quantisation does, from the operator's arguments."""

    element: Element
    scale: Scale
    wrapped: bool
    stochastic: bool
    seed: int

    @classmethod
    def of(cls, element: str, rule: str, rounding: str, grouping: str, seed: int) -> "Spec":
        """Raises ValueError for a name that is none of a table's."""
        row = element_named(element)
        scale = scale_constants(rule, row)
        wrapped = named(GROUPINGS, grouping, "grouping")
        return cls(row, scale, wrapped, named(ROUNDINGS, rounding, "rounding"), seed)

    def constants(self) -> dict[str, Any]:
        """The compile-time arguments that every quantising kernel takes."""
        e, s = self.element, self.scale
        return {
            "M": e.mantissa_bits,
            "MIN_FIELD": e.min_field,
            "MAX_BITS": e.max_bits,
            "FACTOR": s.factor,
            "ROUND": s.round,
            "SUBTRACT": s.subtract,
        }


class Blocks(NamedTuple):
    """A tensor as [batch, k, others] around the blocked axis; strides in elements."""

    batch: int
    k: int
    others: int
    batch_stride: int
    k_stride: int
    other_stride: int

    @classmethod
    def of(cls, x: torch.Tensor, dim: int) -> "Blocks":
        """x is a matrix of any strides, or contiguous."""
        if x.dim() == 2:
            other = 1 - dim
            return cls(1, x.shape[dim], x.shape[other], 0, x.stride(dim), x.stride(other))
        outer, inner, k = x.shape[:dim].numel(), x.shape[dim + 1 :].numel(), x.shape[dim]
        if inner == 1:
            return cls(1, k, outer, 0, 1, k)
        return cls(outer, k, inner, k * inner, inner, 1)

    def strides(self) -> tuple[int, int, int]:
        return self.batch_stride, self.k_stride, self.other_stride


def wrap(x: torch.Tensor, dim: int, what: str) -> int:
    """dim as an index from the front."""
    if x.dim() == 0:
        raise RuntimeError(f"{what}: a zero-dimensional tensor has no axis to block")
    if not -x.dim() <= dim < x.dim():
        raise IndexError(
            "Dimension out of range (expected to be in range of "
            f"[{-x.dim()}, {x.dim() - 1}], but got {dim})"
        )
    return dim % x.dim()


def check_source(dtype: torch.dtype, what: str) -> None:
    """Raises TypeError for what the chip cannot quantise."""
    if dtype not in SOURCES:
        raise TypeError(
            f"{what}: {str(dtype).removeprefix('torch.')} input: the chip quantizes bfloat16 and "
            "float16, and float32 through bfloat16. Convert it first."
        )


def is_column_major(x: torch.Tensor) -> bool:
    """Such a matrix is worked on as its transpose, and so are its codes."""
    return x.dim() == 2 and x.stride(0) == 1 and x.stride(1) > 1


def plain(x: torch.Tensor) -> torch.Tensor:
    x = x.resolve_neg()
    return x if x.dim() == 2 else x.contiguous()


def resized(x: torch.Tensor, dim: int, size: int) -> list[int]:
    shape = list(x.shape)
    shape[dim] = size
    return shape


def tiles(blocks: Blocks, wrapped: bool) -> tuple[tuple[int], dict[str, int]]:
    """Grid and tile of a pass over all groups: 4096 elements a program, where memory runs."""
    groups, elements = scale_count(blocks.k, wrapped), 1 << 19 if INTERPRETED else 4096
    wide = 128 if blocks.other_stride == 1 else 8
    others = min(elements // 32 if INTERPRETED else wide, power_of_two(blocks.others))
    depth = min(elements // 32 // others, power_of_two(groups))
    programs = cdiv(groups, depth) * cdiv(blocks.others, others) * blocks.batch
    return (programs,), {"GROUPS": depth, "OTHERS": others}


@triton.jit
def locate(groups, others, GROUPS: tl.constexpr, OTHERS: tl.constexpr, WRAPPED: tl.constexpr):
    """Of this program: batch, groups [GROUPS, 1, 1], indices along k [GROUPS, 32, 1], others."""
    across = tl.cdiv(others, OTHERS)
    tile, batch = tile_and_batch(tl.cdiv(groups, GROUPS) * across)
    group = (tile // across * GROUPS + tl.arange(0, GROUPS))[:, None, None]
    at_k = group_index(group, tl.arange(0, 32)[None, :, None], WRAPPED).to(tl.int64)
    other = tile % across * OTHERS + tl.arange(0, OTHERS)
    return batch, group.to(tl.int64), at_k, other[None, None, :].to(tl.int64)


@triton.jit
def pairs(codes, GROUPS: tl.constexpr, OTHERS: tl.constexpr):
    """[GROUPS, 32, OTHERS] of 4-bit codes -> [GROUPS, 16, OTHERS] bytes, the first one low."""
    shift = (tl.arange(0, 2) * 4)[None, None, :, None].to(tl.uint32)
    two = tl.reshape(codes, [GROUPS, 16, 2, OTHERS]) << shift
    return tl.sum(two, 2)


@triton.jit
def encode(
    scaled, seed, at, M: tl.constexpr, MIN_FIELD: tl.constexpr, STOCHASTIC: tl.constexpr
):  # fmt: skip
    """Codes of magnitudes in units of their scale, and their values; `at` numbers random words."""
    if STOCHASTIC:
        random = random_word(seed, tl.full([], 0, tl.int64), at)
        return encode_stochastic(scaled, random, M, MIN_FIELD)
    else:
        return encode_nearest(scaled, M, MIN_FIELD)


@triton.jit
def store_codes(
    to, code, group, at_k, other, y_size, others, y_k, y_other,
    GROUPS: tl.constexpr, OTHERS: tl.constexpr, WRAPPED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """A byte for each code, or PACKED, for two; y_size of them along the axis."""
    if PACKED:
        at = byte_index(group, tl.arange(0, 16)[None, :, None], WRAPPED).to(tl.int64)
        bytes_ = pairs(code, GROUPS, OTHERS)
        inside = (at < y_size) & (other < others)
        tl.store(to + at * y_k + other * y_other, bytes_.to(tl.uint8), mask=inside)
    else:
        inside = (at_k < y_size) & (other < others)
        tl.store(to + at_k * y_k + other * y_other, code.to(tl.uint8), mask=inside)


@triton.jit
def quantize_kernel(
    x, y, scales,
    k, others, groups,
    x_batch, x_k, x_other,
    y_size, y_batch, y_k, y_other,
    scales_batch, scales_k, scales_other,
    index_batch, index_k, index_other, seed,
    GROUPS: tl.constexpr, OTHERS: tl.constexpr, WRAPPED: tl.constexpr,
    STOCHASTIC: tl.constexpr, THROUGH_BF16: tl.constexpr,
    CODES: tl.constexpr, PACKED: tl.constexpr, BITS: tl.constexpr, NAN: tl.constexpr,
    M: tl.constexpr, MIN_FIELD: tl.constexpr, MAX_BITS: tl.constexpr,
    FACTOR: tl.constexpr, ROUND: tl.constexpr, SUBTRACT: tl.constexpr,
):  # fmt: skip
    """Codes and scales of x (CODES), or the values they have (y then is of a float dtype)."""
    batch, group, at_k, other = locate(groups, others, GROUPS, OTHERS, WRAPPED)
    inside = (at_k < k) & (other < others)
    from_ = x + batch * x_batch + at_k * x_k + other * x_other
    bits = float_bits(tl.load(from_, mask=inside, other=0))
    magnitude = bits & MAGNITUDE
    if THROUGH_BF16:
        magnitude = through_bf16(magnitude)
    scale = scale_code(tl.max(magnitude, 1, keep_dims=True), FACTOR, ROUND, SUBTRACT)
    scaled = in_units_of(scale, magnitude, MAX_BITS)
    at = batch * index_batch + at_k * index_k + other * index_other
    code, value = encode(scaled, seed, at, M, MIN_FIELD, STOCHASTIC)
    sign = bits & SIGN
    to = y + batch * y_batch
    if CODES:
        code = tl.where(scale == 255, NAN, code | (sign >> (32 - BITS))).to(tl.uint32)
        store_codes(
            to, code, group, at_k, other, y_size, others, y_k, y_other,
            GROUPS, OTHERS, WRAPPED, PACKED,
        )  # fmt: skip
        scale_at = scales + batch * scales_batch + group * scales_k + other * scales_other
        tl.store(scale_at, scale.to(tl.uint8), mask=(group < groups) & (other < others))
    else:
        value = (value * scale_value(scale)).to(tl.uint32, bitcast=True) | sign
        value = tl.where(scale == 255, QUIET_NAN, value).to(tl.uint32)
        store_rounded(to + at_k * y_k + other * y_other, value, inside)


@triton.jit
def dequantize_kernel(
    codes,
    scales,
    y,
    k,
    others,
    groups,
    codes_batch,
    codes_k,
    codes_other,
    scales_batch,
    scales_k,
    scales_other,
    y_batch,
    y_k,
    y_other,
    GROUPS: tl.constexpr,
    OTHERS: tl.constexpr,
    WRAPPED: tl.constexpr,
    PACKED: tl.constexpr,
    BITS: tl.constexpr,
    M: tl.constexpr,
    BIAS: tl.constexpr,
    NAN: tl.constexpr,
    INF: tl.constexpr,
):
    """The values of codes and scales."""
    batch, group, at_k, other = locate(groups, others, GROUPS, OTHERS, WRAPPED)
    inside = (at_k < k) & (other < others)
    stored_k = at_k
    if PACKED:
        stored_k = at_k // 2
    from_ = codes + batch * codes_batch + stored_k * codes_k + other * codes_other
    code = tl.load(from_, mask=inside, other=0).to(tl.uint32)
    if PACKED:
        code = (code >> (at_k % 2 * 4).to(tl.uint32)) & 15
    at = scales + batch * scales_batch + group * scales_k + other * scales_other
    in_group = (group < groups) & (other < others)
    scale = scale_value(tl.load(at, mask=in_group, other=0).to(tl.uint32))
    magnitude = decode(code & ((1 << (BITS - 1)) - 1), M, BIAS, NAN, INF) * scale
    bits = magnitude.to(tl.uint32, bitcast=True)
    signed = bits | ((code << (32 - BITS)) & SIGN)
    signed = tl.where(bits > 0x7F800000, QUIET_NAN, signed).to(tl.uint32)
    store_rounded(y + batch * y_batch + at_k * y_k + other * y_other, signed, inside)


def _run(
    x: torch.Tensor, y: torch.Tensor, scales: torch.Tensor | None, spec: Spec, dim: int
) -> None:
    blocks, stored = Blocks.of(x, dim), Blocks.of(y, dim)
    grid, tile = tiles(blocks, spec.wrapped)
    if blocks.k == 0:
        return
    along_k = (1, blocks.k) if _along_rows(x, dim) else (blocks.others, 1)
    indices = (blocks.k * blocks.others, *along_k)
    scale_strides = (0, 0, 0) if scales is None else Blocks.of(scales, dim).strides()
    launch(
        quantize_kernel,
        grid,
        raw(x),
        raw(y),
        raw(y if scales is None else scales),
        blocks.k,
        blocks.others,
        scale_count(blocks.k, spec.wrapped),
        *blocks.strides(),
        stored.k,
        *stored.strides(),
        *scale_strides,
        *indices,
        spec.seed,
        **tile,
        WRAPPED=spec.wrapped,
        STOCHASTIC=spec.stochastic,
        THROUGH_BF16=x.dtype is torch.float32,
        CODES=scales is not None,
        PACKED=spec.element.bits == 4,
        BITS=spec.element.bits,
        NAN=spec.element.nan_code,
        **spec.constants(),
    )


def _along_rows(x: torch.Tensor, dim: int) -> bool:
    """Whether the blocked axis is the columns of the matrix whose elements are numbered."""
    return dim == 1 if x.dim() == 2 else x.shape[dim + 1 :].numel() == 1


def quantize_mx(
    x: torch.Tensor,
    dim: int = -1,
    element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
    rounding: str = "nearest_even",
    grouping: str = "contiguous",
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of MX blocks along `dim`; the contract of `torch.ops.trn.quantize_mx`.

    x        float32, bfloat16 or float16, any shape and strides
    returns  codes in the element's dtype, [.., k, ..] or [.., ceil(k/2), ..] for float4_e2m1fn, and
             scales float8_e8m0fnu [.., ceil(k/32), ..]

    Raises ValueError for a name that is unknown, TypeError for another dtype, IndexError for dim.
    """
    check_source(x.dtype, "quantize_mx")
    spec = Spec.of(element, scale_rule, rounding, grouping, seed)
    x, dim = plain(x), wrap(x, dim, "quantize_mx")
    if not is_column_major(x):
        return _codes(x, spec, dim)
    if spec.stochastic:  # random bits belong to an element's place among the rows
        codes, scales = _codes(x, spec, dim)
        return _column_major(codes), _column_major(scales)
    codes, scales = _codes(x.t(), spec, 1 - dim)
    return codes.t(), scales.t()


def _column_major(x: torch.Tensor) -> torch.Tensor:
    return raw(x).t().contiguous().t().view(x.dtype)


def _codes(x: torch.Tensor, spec: Spec, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    k = x.shape[dim]
    sizes = resized(x, dim, packed(spec.element, k))
    codes = torch.empty(sizes, dtype=spec.element.codes_dtype, device=x.device)
    sizes = resized(x, dim, scale_count(k, spec.wrapped))
    scales = torch.empty(sizes, dtype=torch.float8_e8m0fnu, device=x.device)
    _run(x, codes, scales, spec, dim)
    return codes, scales


def quantize_dequantize_mx(
    x: torch.Tensor,
    dim: int = -1,
    element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
    rounding: str = "nearest_even",
    grouping: str = "contiguous",
    seed: int = 0,
) -> torch.Tensor:
    """The values that x has after MX quantisation along `dim`, in its dtype, without codes."""
    check_source(x.dtype, "quantize_dequantize_mx")
    spec = Spec.of(element, scale_rule, rounding, grouping, seed)
    x, dim = plain(x), wrap(x, dim, "quantize_dequantize_mx")
    if not is_column_major(x):
        return values(x, spec, dim, x.dtype)
    if spec.stochastic:
        return values(x, spec, dim, x.dtype).t().contiguous().t()
    return values(x.t(), spec, 1 - dim, x.dtype).t()


def values(x: torch.Tensor, spec: Spec, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """The values of x, a row-major matrix or contiguous, quantised along `dim`, in `dtype`."""
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    _run(x, y, None, spec, dim)
    return y


def dequantize_mx(
    codes: torch.Tensor,
    scales: torch.Tensor,
    dim: int = -1,
    dtype: torch.dtype = torch.float32,
    grouping: str = "contiguous",
    size: int | None = None,
    element: str | None = None,
) -> torch.Tensor:
    """The values of MX codes and scales along `dim`; `size` is k where float4 codes leave it open.

    Raises TypeError for other dtypes, ValueError for scales or a size that do not fit.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(
            "dequantize_mx gives float32 or bfloat16, asked for "
            f"{str(dtype).removeprefix('torch.')}"
        )
    row, wrapped = element_of(codes, element), named(GROUPINGS, grouping, "grouping")
    dim = wrap(codes, dim, "dequantize_mx")
    k = _dequantized_size(codes, dim, row, size)
    _check_scales(codes, scales, dim, k, wrapped)
    codes, scales = raw(codes).contiguous(), raw(scales).contiguous()
    y = torch.empty(resized(codes, dim, k), dtype=dtype, device=codes.device)
    blocks = Blocks.of(y, dim)
    grid, tile = tiles(blocks, wrapped)
    launch(
        dequantize_kernel,
        grid,
        codes,
        scales,
        raw(y),
        blocks.k,
        blocks.others,
        scale_count(blocks.k, wrapped),
        *Blocks.of(codes, dim).strides(),
        *Blocks.of(scales, dim).strides(),
        *blocks.strides(),
        **tile,
        WRAPPED=wrapped,
        PACKED=row.bits == 4,
        BITS=row.bits,
        M=row.mantissa_bits,
        BIAS=row.bias,
        NAN=row.nan_code,
        INF=row.infinity_code,
    )
    return y


def _dequantized_size(codes: torch.Tensor, dim: int, element: Element, size: int | None) -> int:
    given = codes.shape[dim]
    if element.bits != 4:
        return given
    if size is not None and packed(element, size) != given:
        raise ValueError(
            f"dequantize_mx: size {size} does not fit {given} bytes of packed float4 codes"
        )
    return 2 * given if size is None else size


def check_codes(codes: torch.Tensor, scales: torch.Tensor, dim: int, wrapped: bool) -> None:
    """Raises TypeError or ValueError for what are no codes and scales along `dim`."""
    dim = wrap(codes, dim, "dequantize_mx")
    size = _dequantized_size(codes, dim, element_of(codes), None)
    _check_scales(codes, scales, dim, size, wrapped)


def _check_scales(
    codes: torch.Tensor, scales: torch.Tensor, dim: int, k: int, wrapped: bool
) -> None:
    if scales.dtype is not torch.float8_e8m0fnu:
        name = str(scales.dtype).removeprefix("torch.")
        raise TypeError(f"MX scales are float8_e8m0fnu, got {name}")
    wanted = resized(codes, dim, scale_count(k, wrapped))
    if list(scales.shape) != wanted:
        raise ValueError(
            f"MX scales of codes {list(codes.shape)} along dim {dim} have shape {wanted}, "
            f"got {list(scales.shape)}"
        )
