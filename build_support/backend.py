"""The PEP 517 backend: setuptools, which builds against the torch that is installed already.

In an isolated build, pip hides the packages of the environment. A torch among them that the
sources support is used where it lies: nothing is downloaded twice, and the library fits it. Only
where there is none is the version of `DEFAULT` fetched.
"""

import os
import warnings
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the other hooks, as they are
from torch_choice import requirement


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *requirement()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *requirement()]


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    """As setuptools, without its warning of a folder with the package's name: here it is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Editable installation")
        return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """A source archive fits every supported torch, whatever is installed where it is made."""
    os.environ["TRN_ANY_TORCH"] = "1"
    return build_meta.build_sdist(sdist_directory, config_settings)
