"""Producers fused with MX quantisation: activations and norms whose result feeds a product.

Each returns what torch's operator gives and, from the same pass over memory, its MX codes and
scales along the last axis. Codes and scales are those of `quantize_mx` of the result, bit for bit;
the result itself is computed in float32 and rounded once. To add an activation, add a row to
`ACTIVATIONS` and its branch in `activate`.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .bits import (
    MAGNITUDE,
    SIGN,
    bf16_bits,
    encode_nearest,
    float_bits,
    in_units_of,
    scale_code,
    through_bf16,
)
from .formats import packed, scale_count
from .launch import INTERPRETED, cdiv, launch, power_of_two, raw
from .quantize import Spec, check_source

__all__ = ["ACTIVATIONS", "gelu_mx", "layer_norm_mx", "rms_norm_mx", "silu_mx"]

Produced = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "silu": 2}


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of float32 x."""
    if ACTIVATION == 0:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == 1:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x * (1.0 - 1.0 / (tl.exp(2.0 * inner) + 1.0))  # 0.5 x (1 + tanh(inner))
    else:
        return x / (1.0 + tl.exp(-x))


@triton.jit
def round_as(value, pointer):
    """float32 bits of `value` rounded to what `pointer` holds; int16 is bfloat16."""
    bits = value.to(tl.uint32, bitcast=True)
    if pointer.dtype.element_ty == tl.int16:
        return bf16_bits(bits).to(tl.uint32) << 16
    else:
        return float_bits(value.to(pointer.dtype.element_ty))


@triton.jit
def store_quantized(
    value,
    y,
    codes,
    scales,
    rows,
    at_k,
    m,
    k,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    NAN: tl.constexpr,
    M: tl.constexpr,
    MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    ROUND: tl.constexpr,
    SUBTRACT: tl.constexpr,
):
    """Stores a float32 tile [ROWS, COLS] at (rows, at_k) of y [m, k], with its codes and scales."""
    inside = (rows[:, None] < m) & (at_k[None, :] < k)
    bits = tl.where(inside, round_as(value, y), 0).to(tl.uint32)
    flat = rows[:, None] * k + at_k[None, :]
    if y.dtype.element_ty == tl.int16:
        tl.store(y + flat, (bits >> 16).to(tl.int16), mask=inside)
    else:
        exact = bits.to(tl.float32, bitcast=True).to(y.dtype.element_ty)
        tl.store(y + flat, exact, mask=inside)
    magnitude = bits & MAGNITUDE
    if y.dtype.element_ty == tl.float32:
        magnitude = through_bf16(magnitude)
    magnitude = tl.reshape(magnitude, [ROWS, COLS // 32, 32])
    scale = scale_code(tl.max(magnitude, 2, keep_dims=True), FACTOR, ROUND, SUBTRACT)
    scaled = in_units_of(scale, magnitude, MAX_BITS)
    code, _ = encode_nearest(scaled, M, MIN_FIELD)
    sign = tl.reshape((bits & SIGN) >> (32 - BITS), [ROWS, COLS // 32, 32])
    code = tl.where(scale == 255, NAN, code | sign).to(tl.uint32)
    if BITS == 4:
        shift = (tl.arange(0, 2) * 4)[None, None, :].to(tl.uint32)
        code = tl.sum(tl.reshape(code, [ROWS, COLS // 2, 2]) << shift, 2)
        byte = tl.min(at_k, 0) // 2 + tl.arange(0, COLS // 2)
        to = codes + rows[:, None] * tl.cdiv(k, 2) + byte[None, :]
        inside = (rows[:, None] < m) & (byte[None, :] * 2 < k)
        tl.store(to, code.to(tl.uint8), mask=inside)
    else:
        tl.store(codes + flat, tl.reshape(code, [ROWS, COLS]).to(tl.uint8), mask=inside)
    group = tl.min(at_k, 0) // 32 + tl.arange(0, COLS // 32)
    to = scales + rows[:, None] * tl.cdiv(k, 32) + group[None, :]
    inside = (rows[:, None] < m) & (group[None, :] * 32 < k)
    tl.store(to, tl.reshape(scale, [ROWS, COLS // 32]).to(tl.uint8), mask=inside)


@triton.jit
def activation_kernel(
    x,
    y,
    codes,
    scales,
    m,
    k,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    NAN: tl.constexpr,
    M: tl.constexpr,
    MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    ROUND: tl.constexpr,
    SUBTRACT: tl.constexpr,
):
    """y = activation(x), [m, k] contiguous, and its codes and scales."""
    across = tl.cdiv(k, COLS)
    rows = ((tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    at_k = (tl.program_id(0) % across) * COLS + tl.arange(0, COLS)
    value = activate(load_rows(x, rows, at_k, m, k), ACTIVATION)
    store_quantized(
        value, y, codes, scales, rows, at_k, m, k, ROWS, COLS,
        BITS, NAN, M, MIN_FIELD, MAX_BITS, FACTOR, ROUND, SUBTRACT,
    )  # fmt: skip


@triton.jit
def load_rows(x, rows, at_k, m, k):
    """float32 [rows, at_k] of x [m, k], zeros outside."""
    inside = (rows[:, None] < m) & (at_k[None, :] < k)
    bits = float_bits(tl.load(x + rows[:, None] * k + at_k[None, :], mask=inside, other=0))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def norm_kernel(
    x,
    weight,
    bias,
    y,
    codes,
    scales,
    m,
    k,
    eps,
    CENTRED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    NAN: tl.constexpr,
    M: tl.constexpr,
    MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    ROUND: tl.constexpr,
    SUBTRACT: tl.constexpr,
):
    """Rows of x [m, k] divided by their root mean square, or standard deviation (CENTRED)."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.arange(0, COLS)
    mean = tl.zeros([ROWS], tl.float32)
    if CENTRED:
        for first in range(0, k, COLS):
            mean += tl.sum(load_rows(x, rows, first + cols, m, k), 1)
        mean = mean / k
    squares = tl.zeros([ROWS], tl.float32)
    for first in range(0, k, COLS):
        value = load_rows(x, rows, first + cols, m, k)
        value = tl.where((first + cols)[None, :] < k, value - mean[:, None], 0.0)
        squares += tl.sum(value * value, 1)
    factor = 1.0 / tl.sqrt_rn(squares / k + eps)
    for first in range(0, k, COLS):
        at_k = first + cols
        value = (load_rows(x, rows, at_k, m, k) - mean[:, None]) * factor[:, None]
        if WEIGHTED:
            w = float_bits(tl.load(weight + at_k, mask=at_k < k, other=0))
            value = value * w.to(tl.float32, bitcast=True)[None, :]
        if BIASED:
            b = float_bits(tl.load(bias + at_k, mask=at_k < k, other=0))
            value = value + b.to(tl.float32, bitcast=True)[None, :]
        store_quantized(
            value, y, codes, scales, rows, at_k, m, k, ROWS, COLS,
            BITS, NAN, M, MIN_FIELD, MAX_BITS, FACTOR, ROUND, SUBTRACT,
        )  # fmt: skip


def _results(x: torch.Tensor, spec: Spec) -> Produced:
    k = x.shape[-1]
    codes = torch.empty(
        (*x.shape[:-1], packed(spec.element, k)), dtype=spec.element.codes_dtype, device=x.device
    )
    scales = torch.empty(
        (*x.shape[:-1], scale_count(k, False)), dtype=torch.float8_e8m0fnu, device=x.device
    )
    return torch.empty_like(x), codes, scales


def _constants(spec: Spec) -> dict[str, Any]:
    return {"BITS": spec.element.bits, "NAN": spec.element.nan_code, **spec.constants()}


def _prepared(
    x: torch.Tensor, element: str, scale_rule: str, what: str
) -> tuple[torch.Tensor, Spec, int, int]:
    check_source(x.dtype, what)
    if x.dim() == 0:
        raise RuntimeError(f"{what}: a zero-dimensional tensor has no axis to block")
    spec = Spec.of(element, scale_rule, "nearest_even", "contiguous", 0)
    x = x.resolve_neg().contiguous()
    return x, spec, x.shape[:-1].numel(), x.shape[-1]


def _activation(x: torch.Tensor, name: str, element: str, scale_rule: str) -> Produced:
    x, spec, m, k = _prepared(x, element, scale_rule, f"{name}_mx")
    y, codes, scales = _results(x, spec)
    cols = max(32, min(512, power_of_two(k)))
    rows = min((1 << 18 if INTERPRETED else 4096) // cols, power_of_two(m))
    launch(
        activation_kernel,
        (cdiv(m, rows) * cdiv(k, cols),),
        raw(x),
        raw(y),
        raw(codes),
        raw(scales),
        m,
        k,
        ACTIVATION=ACTIVATIONS[name],
        ROWS=rows,
        COLS=cols,
        **_constants(spec),
    )
    return y, codes, scales


def gelu_mx(
    x: torch.Tensor,
    approximate: str = "none",
    element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
) -> Produced:
    """gelu(x), and its codes and scales along the last axis."""
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return _activation(x, "gelu_tanh" if approximate == "tanh" else "gelu", element, scale_rule)


def silu_mx(x: torch.Tensor, element: str = "float8_e4m3fn", scale_rule: str = "trn3") -> Produced:
    """silu(x), and its codes and scales along the last axis."""
    return _activation(x, "silu", element, scale_rule)


def _norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    centred: bool,
    element: str,
    scale_rule: str,
) -> Produced:
    what = "layer_norm_mx" if centred else "rms_norm_mx"
    x, spec, m, k = _prepared(x, element, scale_rule, what)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and list(vector.shape) != [k]:
            raise RuntimeError(f"{what}: {name} has shape {list(vector.shape)}, not [{k}]")
    y, codes, scales = _results(x, spec)
    cols = max(32, min(4096, power_of_two(k)))
    rows = min(max(1, (1 << 18 if INTERPRETED else 4096) // cols), power_of_two(m))
    launch(
        norm_kernel,
        (cdiv(m, rows),),
        raw(x),
        raw(x if weight is None else weight.contiguous()),
        raw(x if bias is None else bias.contiguous()),
        raw(y),
        raw(codes),
        raw(scales),
        m,
        k,
        float(eps),
        CENTRED=centred,
        WEIGHTED=weight is not None,
        BIASED=bias is not None,
        ROWS=rows,
        COLS=cols,
        **_constants(spec),
    )
    return y, codes, scales


def rms_norm_mx(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
) -> Produced:
    """x over the root mean square of its last axis, times weight [k]; with codes and scales."""
    return _norm(x, weight, None, eps, False, element, scale_rule)


def layer_norm_mx(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
) -> Produced:
    """layer_norm(x) over its last axis, and its codes and scales along it."""
    return _norm(x, weight, bias, eps, True, element, scale_rule)
