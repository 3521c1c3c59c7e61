"""`torch.compile(backend="trn")`: fused host code and one engine program for each graph.

The backend is an entry point of torch; nothing here need be imported. `report()` says what was
compiled and what was not, `summary()` what fusion saved.
"""

from typing import TYPE_CHECKING, Any

from .records import (
    CompileFallbackWarning,
    GraphRecord,
    UnpricedGraphWarning,
    report,
    reset,
)

if TYPE_CHECKING:
    from .launched import GraphSaving, summary

__all__ = [
    "CompileFallbackWarning",
    "GraphRecord",
    "GraphSaving",
    "UnpricedGraphWarning",
    "report",
    "reset",
    "summary",
]


def __getattr__(name: str) -> Any:
    """`summary` brings the lowering with it, which a program that compiles nothing never needs."""
    if name in ("GraphSaving", "summary"):
        from . import launched

        return getattr(launched, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
