"""What a collective costs: its duration from the operation, the bytes, the group and the system."""

from .model import ALGORITHMS, Duration, duration, extents
from .priced import Priced, bus_factor, price, priced, seconds_on
from .published import CONDITIONS, predicted_s

__all__ = [
    "ALGORITHMS",
    "CONDITIONS",
    "Duration",
    "Priced",
    "bus_factor",
    "duration",
    "extents",
    "predicted_s",
    "price",
    "priced",
    "seconds_on",
]
