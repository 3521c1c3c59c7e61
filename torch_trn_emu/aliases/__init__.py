"""Other names for the device, chosen by `TRN_EMU_AS` or `trn-emu run --as-...`."""

from importlib import import_module

from ..settings import ALIAS
from ..trn.registration import startup_error

__all__ = ["install"]


def install() -> None:
    """Put the alias in force that the environment names; nothing where it names none."""
    if ALIAS and startup_error() is None:
        import_module(f".{ALIAS}", __name__).install()
