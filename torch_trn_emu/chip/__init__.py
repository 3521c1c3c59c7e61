"""Chip specifications: values with a source, importing nothing."""

from .chips import ANNOUNCED, CHIPS, get_chip
from .provenance import Figure, Status, calibrated, chosen, documented, inferred, measured
from .spec import (
    AnnouncedChip,
    Chip,
    Dma,
    ElementwiseEngine,
    Hbm,
    Launch,
    OnChipMemory,
    TensorEngine,
)

__all__ = [
    "ANNOUNCED",
    "CHIPS",
    "AnnouncedChip",
    "Chip",
    "Dma",
    "ElementwiseEngine",
    "Figure",
    "Hbm",
    "Launch",
    "OnChipMemory",
    "Status",
    "TensorEngine",
    "calibrated",
    "chosen",
    "documented",
    "get_chip",
    "inferred",
    "measured",
]
