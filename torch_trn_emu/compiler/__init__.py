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
    from .graph_launches import GraphSaving, summary

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
    """`summary` imports `ops` and `kernels`, which a program that compiles nothing never needs."""
    if name in ("GraphSaving", "summary"):
        from . import graph_launches

        return getattr(graph_launches, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
