"""Number formats as rows. `codec` and `mx` hold the numpy definitions and are imported by name."""

from .formats import (
    ELEMENTS,
    FORMATS,
    MX_FORMATS,
    POLICIES,
    SCALE_RULES,
    Element,
    FloatFormat,
    MxFormat,
    Policy,
    ScaleRule,
    Specials,
)

__all__ = [
    "ELEMENTS",
    "FORMATS",
    "MX_FORMATS",
    "POLICIES",
    "SCALE_RULES",
    "Element",
    "FloatFormat",
    "MxFormat",
    "Policy",
    "ScaleRule",
    "Specials",
]
