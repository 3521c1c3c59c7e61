"""Which torch the library is built against: the installed one, if the sources support it."""

import os
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

LOWEST, BELOW = (2, 13), (2, 15)  # docs/installation.md has what differs between them
SUPPORTED = "torch>=2.13,<2.15"
DEFAULT = "torch==2.13.0"  # fetched by an isolated build where no torch is installed


class Torch(NamedTuple):
    version: str  # without what follows a plus: 2.13.0+cpu is 2.13.0
    folder: Path


def supported(version: str) -> bool:
    major, minor = version.split(".")[:2]
    return LOWEST <= (int(major), int(minor)) < BELOW


def found() -> Torch | None:
    """The first supported torch of the path, then of the environment that pip hides."""
    environment = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for distribution in distributions(name="torch", path=[*sys.path, *environment]):
        version = distribution.version.partition("+")[0]
        folder = Path(str(distribution.locate_file("torch"))).resolve()
        if supported(version) and (folder / "include/ATen/ATen.h").is_file():
            return Torch(version, folder)
    return None


def requirement() -> list[str]:
    """What an isolated build has to fetch."""
    return [] if found() else [DEFAULT]


def dependency() -> str:
    """The requirement of what is built: the version of the headers, exactly, once it is known."""
    torch = None if "TRN_ANY_TORCH" in os.environ else found()
    return f"torch=={torch.version}" if torch else SUPPORTED
