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
    """What every error of this package is."""


class ChipLimit(TrnEmuError):
    """The program asks for more than the chip has. The text gives limit, source and a way out."""


class UndefinedOnChip(TrnEmuError):
    """The vendor leaves it undefined (unwritten SBUF, a race). The text names data and reader."""


class Unsupported(TrnEmuError, NotImplementedError):
    """Will not be emulated. The text gives the alternative."""


class Unimplemented(TrnEmuError, NotImplementedError):
    """Planned. The text names the file where it goes."""


class EmulatorBug(TrnEmuError):
    """An invariant of ours broke. How to report it follows the text."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text}\n{REPORT}")
