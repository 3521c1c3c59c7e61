"""The errors this package raises: a closed list; the class tells you who has to act.

Users catch `TrnEmuError`, or `RuntimeError` as they do with torch.
"""

__all__ = [
    "ChipLimit",
    "EmulatorBug",
    "TrnEmuError",
    "UndefinedOnChip",
    "Unimplemented",
    "Unsupported",
]

REPORT = "This is a bug in torch_trn_emu: please report it with the lines above."


class TrnEmuError(RuntimeError):
    """Base class of all errors of this package."""


class ChipLimit(TrnEmuError):
    """The program exceeds a limit of the chip. The message states limit, source and workaround."""


class UndefinedOnChip(TrnEmuError):
    """Undefined by the vendor (unwritten SBUF, a race). The message names data and reader."""


class Unsupported(TrnEmuError, NotImplementedError):
    """Not emulated by design. The message suggests an alternative."""


class Unimplemented(TrnEmuError, NotImplementedError):
    """Planned but not implemented. The message names the file where it belongs."""


class EmulatorBug(TrnEmuError):
    """An internal invariant was violated. The message says how to report it."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text}\n{REPORT}")
