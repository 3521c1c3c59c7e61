"""Encode and decode of any `FloatFormat`: the definition, exact and slow, for tests and machine.

Real numbers are float64, which holds every value of every format here exactly.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import Unsupported
from .formats import FloatFormat, Specials

__all__ = ["decode", "encode", "round_to", "with_sign"]

Codes = npt.NDArray[np.uint32]
Reals = npt.NDArray[np.float64]


def decode(format: FloatFormat, codes: npt.ArrayLike) -> Reals:
    """The values of `codes`: float64, exact; NaN and inf where the code says so."""
    code = np.asarray(codes, dtype=np.uint32).astype(np.int64)
    if format.specials is Specials.INTEGER:
        wrapped = code - ((code >> (format.bits - 1)) << format.bits)
        return np.asarray(np.ldexp(wrapped.astype(np.float64), -format.mantissa_bits))
    sign_bit = 1 << (format.exponent_bits + format.mantissa_bits)
    magnitude = code & (sign_bit - 1)
    exponent = magnitude >> format.mantissa_bits
    mantissa = magnitude & ((1 << format.mantissa_bits) - 1)
    subnormal = (exponent == 0) & (format.specials is not Specials.SCALE)
    significand = np.where(subnormal, mantissa, mantissa + (1 << format.mantissa_bits))
    power = np.maximum(exponent - format.bias, format.emin) - format.mantissa_bits
    value = np.ldexp(significand.astype(np.float64), power)
    value = np.where(magnitude > format.max_code, np.nan, value)
    if format.inf_code is not None:
        value = np.where(magnitude == format.inf_code, np.inf, value)
    negative = ((code & sign_bit) != 0) & format.signed
    return np.asarray(np.where(negative, -value, value))


def encode(
    format: FloatFormat, values: npt.ArrayLike, overflow: Literal["saturate", "special"] = "special"
) -> Codes:
    """The codes nearest to `values`, ties to even; subnormals are produced, -0 keeps its sign
    (but an INTEGER has one zero, and never gives its least code, which has no opposite).

    overflow  "saturate" gives the largest finite value, for inf too; "special" gives inf, or NaN
              in a format without inf, or saturates in one without either.

    Raises Unsupported for NaN in a format without NaN, and for a value <= 0 in a scale format.
    """
    with np.errstate(invalid="ignore"):  # widening a signalling NaN quiets it and warns
        real = np.asarray(values, dtype=np.float64)
    magnitude, nan = np.abs(real), np.isnan(real)
    if nan.any() and format.nan_code is None:
        raise Unsupported(f"{format.name} has no NaN. Check for NaN before encoding.")
    if format.specials is Specials.SCALE and bool((real[~nan] <= 0).any()):
        raise Unsupported(f"{format.name} represents positive powers of two only.")
    finite = np.where(np.isfinite(magnitude), magnitude, 0.0)
    binade = np.where(finite > 0, np.frexp(finite)[1].astype(np.int64) - 1, format.emin)
    exponent = np.maximum(binade, format.emin)
    steps = np.rint(np.ldexp(finite, format.mantissa_bits - exponent)).astype(np.int64)
    code = steps + ((exponent - format.emin) << format.mantissa_bits)
    if format.specials is Specials.SCALE:  # code 0 is a normal number here
        code -= 1
        code = np.maximum(code, 0)
    over = (code > format.max_code) | np.isinf(magnitude)
    code = np.where(over, _overflow_code(format, overflow), code)
    if format.nan_code is not None:
        code = np.where(nan, format.nan_code, code)
    return with_sign(format, code, np.signbit(real) & ~nan)


def with_sign(format: FloatFormat, magnitude: npt.ArrayLike, negative: npt.ArrayLike) -> Codes:
    """The codes of magnitudes with their signs; a format without signs has none to give."""
    code = np.asarray(magnitude, dtype=np.int64)
    if not format.signed:
        return code.astype(np.uint32)
    if format.specials is Specials.INTEGER:
        signed = np.where(negative, -code, code) & ((1 << format.bits) - 1)
    else:
        signed = code | np.asarray(negative).astype(np.int64) << (format.bits - 1)
    return np.asarray(signed, dtype=np.uint32)


def _overflow_code(format: FloatFormat, overflow: str) -> int:
    if overflow == "saturate" or not format.has_specials:
        return format.max_code
    special = format.inf_code if format.inf_code is not None else format.nan_code
    assert special is not None
    return special


def round_to(
    format: FloatFormat, values: npt.ArrayLike, overflow: Literal["saturate", "special"] = "special"
) -> Reals:
    """`values` rounded to the format: decode of encode."""
    return decode(format, encode(format, values, overflow))
