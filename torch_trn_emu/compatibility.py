"""The one torch that the C++ library fits: the version whose headers it was compiled with.

CMake writes that version into `built_for.txt`, beside the library.
"""

from pathlib import Path

import torch

__all__ = ["BUILT_FOR", "check_library", "check_torch"]

_RECORD = Path(__file__).with_name("built_for.txt")
BUILT_FOR = _RECORD.read_text().strip() if _RECORD.is_file() else "an unknown version"

_REMEDY = (
    "compile it for the installed torch (pip install --no-build-isolation -e . in a clone of the "
    "repository, docs/installation.md)"
)


def check_torch(installed: str) -> None:
    """Raise ImportError, naming both versions, for a torch that the library does not fit."""
    if installed.partition("+")[0] != BUILT_FOR:
        raise ImportError(
            f"torch_trn_emu is built for torch {BUILT_FOR}, but torch {installed} is installed: "
            f"{_REMEDY}, or install the torch that it was built for."
        )


def check_library() -> None:
    """Raise ImportError with the remedy if the library cannot be loaded."""
    try:
        from . import _C  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the compiled library of torch_trn_emu cannot be loaded ({error}): {_REMEDY}."
        ) from error


check_torch(torch.__version__)
check_library()
