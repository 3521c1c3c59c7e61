"""Finds the compiled library: beside this file, in another copy of the package, or nowhere."""

import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path

PACKAGE = "torch_trn_emu"


def use_library(search: list[str]) -> None:
    """Make `search`, the `__path__` of the package, a folder that has the compiled library.

    A clone without it, found first because Python was started there, gives way to the installed
    copy, provided that both have the same `__init__.py`.

    Raises ImportError, naming the remedy, where there is no library to use.
    """
    here = Path(search[0]).resolve()
    if not sys.platform.startswith("linux"):
        raise ImportError(
            f"torch_trn_emu runs on Linux only, not on {sys.platform}: use a Linux container or "
            "virtual machine, or WSL2 (docs/installation.md)."
        )
    if has_library(here):
        return
    installed = next((folder for folder in _copies() if folder != here), None)
    if installed is None:
        raise ImportError(_missing(here))
    if _source(installed) != _source(here):
        raise ImportError(
            f"{here} has no compiled library and hides the installed copy in {installed}, which is "
            f"of another version: start Python in another folder, or run `pip install -e .` in "
            f"{here.parent}."
        )
    search[:] = [str(installed)]


def has_library(folder: Path) -> bool:
    """Whether `folder` has the library for this interpreter."""
    return any((folder / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)


def _copies() -> Iterator[Path]:
    """Folders of the package with a library, in the order in which Python would find them."""
    for entry in sys.path:
        if has_library(folder := Path(entry).resolve() / PACKAGE):
            yield folder
    for finder in sys.meta_path:  # an editable installation has a finder of its own
        if finder is not PathFinder and (find := getattr(finder, "find_spec", None)):
            spec = find(PACKAGE, None)
            for place in (spec and spec.submodule_search_locations) or ():
                if has_library(folder := Path(place).resolve()):
                    yield folder


def _source(folder: Path) -> bytes:
    return (folder / "__init__.py").read_bytes()


def _missing(here: Path) -> str:
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    if (here.parent / "CMakeLists.txt").is_file():
        remedy = f"run `make build` or `pip install -e .` in {here.parent}"
    else:
        remedy = "install the package again for this interpreter"
    return f"{here} has no compiled library (_C) for {version}: {remedy}."
