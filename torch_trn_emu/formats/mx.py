"""MX formats: an element row, blocks of 32 that share a power-of-two scale, and the rule for it.

Formats and rules are rows of formats.def. This is the definition in numpy, to be obviously right.

Sources
  [mx]   OCP Microscaling formats v1.0, section 6.3
  [isa]  Neuron SDK 2.32, nki.isa.quantize_mx
"""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from .codec import Codes, Reals, decode, encode
from .formats import FORMATS, MX_FORMATS, SCALE_RULES, FloatFormat, MxFormat, ScaleRule

__all__ = ["MX_FORMATS", "SCALE_RULES", "MxFormat", "dequantize_mx", "quantize_mx"]

SCALE_NAN = 0xFF
SCALE_BIAS = 127


def _floor_log2(x: Reals) -> npt.NDArray[np.int64]:
    return np.asarray(np.frexp(x)[1], dtype=np.int64) - 1


def _ceil_log2(x: Reals) -> npt.NDArray[np.int64]:
    mantissa, exponent = np.frexp(x)
    return np.asarray(exponent - (mantissa == 0.5), dtype=np.int64)


def _nearest_log2(x: Reals, e: FloatFormat) -> npt.NDArray[np.int64]:
    """Of x rounded to the element's mantissa, ties away from zero, as rounding its bits does."""
    step = np.ldexp(1.0, _floor_log2(x) - e.mantissa_bits)
    return _floor_log2(np.floor(x / step + 0.5) * step)


# The logarithms of formats.def, of x > 0.
_LOG2: MappingProxyType[str, Callable[[Reals, FloatFormat], npt.NDArray[np.int64]]] = (
    MappingProxyType(
        {
            "floor": lambda x, e: _floor_log2(x),
            "ceil": lambda x, e: _ceil_log2(x),
            "nearest": _nearest_log2,
        }
    )
)


def _exponent(rule: ScaleRule, amax: Reals, e: FloatFormat) -> npt.NDArray[np.int64]:
    """The scale's exponent, for amax > 0."""
    share = rule.of == "share"
    of = amax
    if share:
        of = (amax.astype(np.float32) * (np.float32(1) / np.float32(e.max))).astype(np.float64)
    found = _LOG2[rule.log2](np.where(of > 0, of, 1.0), e) - (0 if share else e.emax) + rule.raised
    return np.asarray(np.where(of > 0, found, -SCALE_BIAS), dtype=np.int64)


def quantize_mx(
    x: npt.ArrayLike, format: MxFormat = MX_FORMATS["mxfp8"], rule: str = "trn3"
) -> tuple[Codes, npt.NDArray[np.uint8]]:
    """Quantize to MX blocks along the last axis, zero-padding a ragged end.

    x        [..., K] real numbers
    returns  codes [..., K] and scales [..., ceil(K/32)] uint8 (value 2^(scale - 127))

    Elements round to nearest even and saturate. A block of zeros gets the scale 2^-127 [isa].
    A block holding NaN or inf gets scale 0xFF and the element's NaN code, 0 where it has none
    (chosen: [mx] leaves it open).
    """
    values = np.asarray(x, dtype=np.float64)
    k, size = values.shape[-1], format.block_size
    padding = [(0, 0)] * (values.ndim - 1) + [(0, -k % size)]
    blocks = np.pad(values, padding).reshape(*values.shape[:-1], -(-k // size), size)
    amax = np.abs(blocks).max(axis=-1, initial=0.0)
    bad, zero = ~np.isfinite(amax), amax == 0
    exponent = _exponent(SCALE_RULES[rule], np.where(bad | zero, 1.0, amax), format.element)
    exponent = np.clip(np.where(zero, -SCALE_BIAS, exponent), -SCALE_BIAS, SCALE_BIAS)
    scaled = np.ldexp(np.where(bad[..., None], 0.0, blocks), -exponent[..., None])
    codes = encode(format.element, scaled, "saturate")
    codes = np.where(bad[..., None], format.element.nan_code or 0, codes).astype(codes.dtype)
    scales = np.where(bad, SCALE_NAN, exponent + SCALE_BIAS).astype(np.uint8)
    return codes.reshape(*values.shape[:-1], -(-k // size) * size)[..., :k], scales


def dequantize_mx(
    codes: npt.ArrayLike, scales: npt.ArrayLike, format: MxFormat = MX_FORMATS["mxfp8"]
) -> Reals:
    """The values of MX blocks: codes [..., K], scales [..., ceil(K/32)] -> [..., K], exact."""
    elements = decode(format.element, codes)
    scale = decode(FORMATS["float8_e8m0fnu"], scales)
    return elements * np.repeat(scale, format.block_size, axis=-1)[..., : elements.shape[-1]]
