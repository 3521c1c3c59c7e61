"""`torch.compile(backend="trn")`: fused host code and one engine program for each graph.

The backend is an entry point of torch; nothing here need be imported. `report()` says what was
compiled and what was not.
"""

from .records import CompileFallbackWarning, GraphRecord, report, reset

__all__ = ["CompileFallbackWarning", "GraphRecord", "report", "reset"]
