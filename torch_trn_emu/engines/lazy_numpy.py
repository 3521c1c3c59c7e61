"""numpy, imported when first used: pricing a Program reads the rows beside the semantics but
computes nothing, and must work and start quickly without numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:

    class _Lazy:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("numpy"), name)

    np = _Lazy()

__all__ = ["np"]
