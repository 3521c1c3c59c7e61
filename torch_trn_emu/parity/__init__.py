"""The numerics debugger: a model in two places, its errors by module, operator and cause."""

from .comparison import Comparison, compare
from .examine import OpError
from .measure import Distance, distance
from .sweep import Sensitivity, sensitivity

__all__ = [
    "Comparison",
    "Distance",
    "OpError",
    "Sensitivity",
    "compare",
    "distance",
    "sensitivity",
]
