"""The engines: what each instruction computes and how long it takes. `machine` runs Programs."""

from types import MappingProxyType

from ..chip import Chip
from ..isa import Instruction
from . import dma, gpsimd, scalar, tensor, vector
from .behaviour import Behaviour, clock_hz
from .dma import Transfer, transfer
from .scalar import table_of

__all__ = ["BEHAVIOURS", "Behaviour", "Transfer", "clock_hz", "cycles", "table_of", "transfer"]

BEHAVIOURS = MappingProxyType(
    {row.opcode: row for module in (tensor, vector, scalar, gpsimd, dma) for row in module.ROWS}
)


def cycles(instruction: Instruction, chip: Chip) -> float:
    """Cycles of its engine's clock until the engine can take the next instruction; 0 for DMA."""
    return float(BEHAVIOURS[instruction.opcode].cycles(instruction, chip))
