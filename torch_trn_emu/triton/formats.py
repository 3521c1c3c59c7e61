"""What the kernels know of formats and rules, as plain numbers: rows of compile-time constants.

Element formats are those of formats.def whose codes are a sign and magnitude of a byte or half of
one, scale rules its rows. Both follow `torch_trn_emu.formats` and csrc/numerics/mx.cpp.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from ..formats import ELEMENTS as FORMAT_ELEMENTS
from ..formats import FORMATS, SCALE_RULES, Specials

__all__ = [
    "BLOCK_SIZE",
    "ELEMENTS",
    "GROUPINGS",
    "ROUNDINGS",
    "SCALE_RULES",
    "Element",
    "Scale",
    "element_named",
    "element_of",
    "named",
    "packed",
    "scale_constants",
    "scale_count",
]

BLOCK_SIZE = 32
T = TypeVar("T")


class Element(NamedTuple):
    """An element format: what the encoder needs, in terms of float32 bits."""

    name: str
    codes_dtype: torch.dtype
    mantissa_bits: int
    min_field: int  # float32's exponent field of the smallest normal
    max_bits: int  # float32's bits of the largest value
    nan_code: int  # 0 where there is none
    infinity_code: int  # 256 where there is none
    bits: int
    bias: int


def _element(name: str, codes_dtype: torch.dtype) -> Element:
    row = FORMATS[name]
    return Element(
        name,
        codes_dtype,
        row.mantissa_bits,
        row.emin + 127,
        int(np.float32(row.max).view(np.uint32)),
        0 if row.nan_code is None else (1 << (row.bits - 1)) - 1,  # all ones, as csrc does
        256 if row.inf_code is None else row.inf_code,
        row.bits,
        row.bias,
    )


ELEMENTS = MappingProxyType(
    {
        name: _element(name, getattr(torch, row.codes_dtype.lower()))
        for name, row in FORMAT_ELEMENTS.items()
        if row.format.specials is not Specials.INTEGER and row.format.bits in (4, 8)
    }
)
ROUNDINGS = MappingProxyType({"nearest_even": False, "stochastic": True})
GROUPINGS = MappingProxyType({"contiguous": False, "wrapped": True})


class Scale(NamedTuple):
    """The scale's code is (bits(amax * factor) + round >> 23) - subtract, clamped."""

    factor: float
    round: int
    subtract: int


# Added to the bits of a float32, so that its exponent is the logarithm of formats.def.
_ROUNDING_BITS: Mapping[str, Callable[[int], int]] = MappingProxyType(
    {
        "floor": lambda mantissa_bits: 0,
        "ceil": lambda mantissa_bits: 0x7FFFFF,  # one more unless a power of two
        "nearest": lambda mantissa_bits: 1 << (22 - mantissa_bits),
    }
)


@cache
def scale_constants(rule: str, element: Element) -> Scale:
    """The constants of a scale rule for an element format. Raises ValueError for another rule."""
    row, made = FORMATS[element.name], named(SCALE_RULES, rule, "scale_rule")
    share = made.of == "share"
    return Scale(
        float(np.float32(1) / np.float32(row.max)) if share else 1.0,
        _ROUNDING_BITS[made.log2](row.mantissa_bits),
        (0 if share else row.emax) - made.raised,
    )


def named(rows: Mapping[str, T], name: str, what: str) -> T:
    """The row of that name, or ValueError with the names there are."""
    if name not in rows:
        raise ValueError(f'{what} "{name}" is none of {", ".join(rows)}')
    return rows[name]


def element_named(name: str) -> Element:
    """An element format by name. Raises ValueError for one that this host does not compute."""
    if name in FORMAT_ELEMENTS and name not in ELEMENTS:
        raise ValueError(f"a CUDA host computes no MX elements {name}: use TRN_EMU_HOST=cpu")
    return named(ELEMENTS, name, "element")


def element_of(codes: torch.Tensor, name: str | None = None) -> Element:
    """The element format of a tensor of codes. Raises TypeError for another dtype."""
    if name is not None and element_named(name).codes_dtype is not codes.dtype:
        raise TypeError(f"MX codes of {name} are not {str(codes.dtype).removeprefix('torch.')}")
    for element in ELEMENTS.values():
        if element.codes_dtype is codes.dtype:
            return element
    raise TypeError(
        "MX codes are float8_e4m3fn, float8_e5m2 or float4_e2m1fn_x2, got "
        f"{str(codes.dtype).removeprefix('torch.')}"
    )


def packed(element: Element, k: int) -> int:
    """Bytes that the codes of k elements take."""
    return (k + 1) // 2 if element.bits == 4 else k


def scale_count(k: int, wrapped: bool) -> int:
    """Scales along an axis of k elements."""
    return -(-k // 512) * 16 if wrapped else -(-k // BLOCK_SIZE)
