"""Number formats as rows. `codec` and `mx` hold the numpy definitions and are imported by name."""

from .formats import FORMATS, FloatFormat, Specials

__all__ = ["FORMATS", "FloatFormat", "Specials"]
