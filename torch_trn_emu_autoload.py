"""The entry point that `import torch` calls: makes the device `trn`, or says why there is none.

It lies beside the package, so that torch stays usable when the package cannot be imported.
"""

import sys
import warnings

__all__ = ["autoload"]


def autoload() -> None:
    """Import torch_trn_emu, which registers the device; warn with the remedy where that fails."""
    try:
        from torch_trn_emu.settings import settings
        from torch_trn_emu.trn.registration import startup_error

        if startup_error() is None and settings().profile:  # else it is told at the first use
            from torch_trn_emu.cli.ranks import record_this_process

            record_this_process()
    except Exception as error:
        _forget()
        _warn(
            f"torch works, but without the device trn: {error}\n"
            "To silence this, set TORCH_DEVICE_BACKEND_AUTOLOAD=0."
        )


def _forget() -> None:
    """A later `import torch_trn_emu` tries again and raises the error."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "torch_trn_emu"]:
        del sys.modules[name]


def _warn(text: str) -> None:
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=4)
    except RuntimeWarning:  # -W error: torch would become unusable
        print(f"warning: {text}", file=sys.stderr)
