"""What a collective costs: its duration from the operation, the bytes, the group and the system."""

from .model import ALGORITHMS, Duration, duration, extents
from .published import CONDITIONS, predicted_s

__all__ = [
    "ALGORITHMS",
    "CONDITIONS",
    "Duration",
    "duration",
    "extents",
    "predicted_s",
]
