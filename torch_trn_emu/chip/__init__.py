"""Chip specifications: values with a source, importing nothing."""

from .chips import CHIPS, get_chip
from .provenance import (
    Figure,
    Status,
    calibrated,
    chosen,
    documented,
    inferred,
    measured,
    projected,
)
from .spec import (
    Chip,
    Dma,
    ElementwiseEngine,
    Hbm,
    Launch,
    OnChipMemory,
    TensorEngine,
)
from .systems import SYSTEMS, Level, System, get_system

__all__ = [
    "CHIPS",
    "SYSTEMS",
    "Chip",
    "Dma",
    "ElementwiseEngine",
    "Figure",
    "Hbm",
    "Launch",
    "Level",
    "OnChipMemory",
    "Status",
    "System",
    "TensorEngine",
    "calibrated",
    "chosen",
    "documented",
    "get_chip",
    "get_system",
    "inferred",
    "measured",
    "projected",
]
