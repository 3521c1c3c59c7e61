"""The one torch that the C++ library fits: it is compiled against it, as pyproject.toml pins it."""

import torch

__all__ = ["BUILT_FOR", "check_torch"]

BUILT_FOR = "2.13.0"


def check_torch(installed: str) -> None:
    """Raise ImportError, naming both versions, for a torch that the library does not fit."""
    if installed.partition("+")[0] != BUILT_FOR:
        raise ImportError(
            f"torch_trn_emu is built for torch {BUILT_FOR}, but torch {installed} is installed: "
            f"pip install torch=={BUILT_FOR}, or build the package against this one. To import "
            "torch without it, set TORCH_DEVICE_BACKEND_AUTOLOAD=0."
        )


check_torch(torch.__version__)
