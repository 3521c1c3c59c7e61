"""Number formats as rows. `codec` and `mx` hold the numpy definitions and are imported by name."""

from .formats import (
    ELEMENTS,
    FORMATS,
    MX_FORMATS,
    POLICIES,
    Element,
    FloatFormat,
    MxFormat,
    Policy,
    Specials,
)

__all__ = [
    "ELEMENTS",
    "FORMATS",
    "MX_FORMATS",
    "POLICIES",
    "Element",
    "FloatFormat",
    "MxFormat",
    "Policy",
    "Specials",
]
