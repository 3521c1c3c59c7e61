"""How much error a format may cause: tolerances follow from the bits of the format in force.

Rounding to a format with `m` mantissa bits errs by at most u = 2^-(m+1) of a value, and by
u/sqrt(3) in the mean square. A product of two rounded operands therefore errs by about
sqrt((u_a^2 + u_b^2) / 3) of sqrt(sum((a_i b_i)^2)), one output rounding by u of the result, and a
float32 sum of k terms by sqrt(k) 2^-24. `SAFETY` times that is the tolerance (chosen).
"""

import math

from ..formats import FORMATS
from ..lowering.ops import compute_format

__all__ = ["LABELS", "SAFETY", "matmul_kind", "operand_formats", "product_noise", "unit_roundoff"]

SAFETY = 2.5  # chosen: errors of real data are neither independent nor evenly spread

_ELEMENT = {"mxfp8": "float8_e4m3fn", "mxfp4": "float4_e2m1fn"}
LABELS = {
    "mxfp8": "MXFP8 E4M3",
    "mxfp4": "MXFP4 E2M1",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32",
    "float64": "float64",
}

_KINDS = {
    "linear": "mm addmm _addmm_activation linear mv addmv dot vdot",
    "attention": "bmm baddbmm addbmm",
    "convolution": "convolution convolution_backward convolution_overrideable"
    " convolution_backward_overrideable _convolution",
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}


def matmul_kind(name: str) -> str:
    """linear, attention or convolution for an operator that multiplies matrices, else ""."""
    plain = name.rstrip("_")
    return "attention" if "scaled_dot_product" in plain else _KIND_OF.get(plain, "")


def operand_formats(
    name: str, policy: str, dtype: str, *, kind: str = "", weight: int = 1
) -> tuple[str, ...]:
    """The formats of both operands of a product under `policy`; () for other operators.

    dtype   torch's name of the operands' dtype, "float32"
    kind    linear or attention, where the operator's name does not tell
    weight  the operand that is a weight, 0 or 1; -1 where neither is
    """
    kind = kind or matmul_kind(name)
    if not kind:
        return ()
    if dtype not in ("float32", "bfloat16", "float16"):
        return (dtype, dtype)  # not native: the host computes it as it is
    first = compute_format(policy, dtype, kind)
    if first == "mxfp4":
        formats = ["mxfp8", "mxfp8"]
        if weight >= 0:
            formats[weight] = "mxfp4"
        return tuple(formats)
    return (first, first)


def unit_roundoff(format: str) -> float:
    """Half the distance from 1 to the next value."""
    if format == "float64":
        return float(2.0**-53)
    row = FORMATS.get(_ELEMENT.get(format, format))
    return row.eps / 2 if row else 0.0


def product_noise(formats: tuple[str, ...]) -> float:
    """Expected error of a product of rounded operands, to sqrt(sum((a_i b_i)^2))."""
    return math.sqrt(sum(unit_roundoff(f) ** 2 for f in formats) / 3)
