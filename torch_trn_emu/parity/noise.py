"""How much error a format may cause: tolerances follow from the bits of the format in force.

Rounding to a format with `m` mantissa bits errs by at most u = 2^-(m+1) of a value, and by
u/sqrt(3) in the mean square. A product of two rounded operands therefore errs by about
sqrt((u_a^2 + u_b^2) / 3) of sqrt(sum((a_i b_i)^2)), one output rounding by u of the result, and a
float32 sum of k terms by sqrt(k) 2^-24. `SAFETY` times that is the tolerance (chosen).
"""

import math

from ..formats import FORMATS, MX_FORMATS, POLICIES, Specials
from ..ops import compute_format

__all__ = ["LABELS", "SAFETY", "matmul_kind", "operand_formats", "product_noise", "unit_roundoff"]

SAFETY = 2.5  # chosen: errors of real data are neither independent nor evenly spread

# Evenly spaced elements err by a share of the largest of their block, which is 2 to 3 times the
# root mean square of 32 normal values and lies between half and all of the range (chosen).
CREST = 4

LABELS = {row.name: row.label for row in MX_FORMATS.values()} | {
    name: name for name in ("bfloat16", "float16", "float32", "float64")
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
    chosen = compute_format(policy, dtype, kind)
    if chosen not in MX_FORMATS or kind != "linear":
        return (chosen, chosen)
    row = POLICIES[policy]
    if weight < 0:
        return (row.weight_gradient, row.weight_gradient)
    formats = [row.other, row.other]
    formats[weight] = row.weight
    return tuple(formats)


def unit_roundoff(format: str) -> float:
    """Half the distance from 1 to the next value; of integers, relative to values of usual size."""
    if format == "float64":
        return float(2.0**-53)
    row = MX_FORMATS[format].element if format in MX_FORMATS else FORMATS.get(format)
    if row is None:
        return 0.0
    return row.eps / 2 * (CREST if row.specials is Specials.INTEGER else 1)


def product_noise(formats: tuple[str, ...]) -> float:
    """Expected error of a product of rounded operands, to sqrt(sum((a_i b_i)^2))."""
    return math.sqrt(sum(unit_roundoff(f) ** 2 for f in formats) / 3)
