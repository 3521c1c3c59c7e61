"""Other names for the device, chosen by `TRN_EMU_AS` or `trn-emu run --as-...`."""

from importlib import import_module
from warnings import warn

from ..settings import ALIAS
from ..trn.registration import startup_error

__all__ = ["install"]


def install() -> None:
    """Put the alias in force that the environment names; warn where there is no device for it."""
    if not ALIAS:
        return
    if (error := startup_error()) is not None:
        warn(f"{ALIAS} is no name of trn, which has no device: {error}", stacklevel=2)
    else:
        import_module(f".{ALIAS}", __name__).install()
