"""Imports point down: a module imports its own layer and those below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "torch_trn_emu"

# From the bottom up. Modules on one line may import each other.
LAYERS = (
    ("errors", "files", "importing", "pages", "compatibility", "_library", "_C", "torch_private"),
    ("chip",),
    ("settings",),  # checked against the chip
    ("collectives",),
    ("host",),
    ("formats",),
    ("isa",),
    ("engines",),
    ("timing",),
    ("counters",),
    ("precision", "annotation"),
    ("accelerated",),
    ("calls",),
    ("kernels",),
    ("ops",),
    ("pricing", "advice", "ranges"),
    ("compiler",),
    ("estimation",),
    ("parity",),
    ("profiler",),
    ("trn",),
    ("triton",),
    ("aliases", "integrations"),
    ("",),  # torch_trn_emu/__init__.py, what `import torch_trn_emu` gives
    ("testing",),
    ("cli", "stubs", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))


def module_of(path: Path) -> list[str]:
    """torch_trn_emu/chip/chips.py -> ["torch_trn_emu", "chip", "chips"]"""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported_names(path: Path) -> Iterator[list[str]]:
    """Every dotted name that the file imports, relative ones made absolute."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from ([*base, alias.name] for alias in node.names)


def is_module(name: str) -> bool:
    path = ROOT / PACKAGE / name
    return name == "_C" or path.is_dir() or path.with_suffix(".py").exists()


def layer_of(dotted: list[str]) -> str:
    """The layer that the name belongs to: "" for what the package itself exports."""
    return dotted[1] if len(dotted) > 1 and is_module(dotted[1]) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    layer = layer_of(module_of(path))
    assert layer in LEVEL, f"give {layer} a place in LAYERS"
    for dotted in imported_names(path):
        if dotted[0] != PACKAGE:
            continue
        below = layer_of(dotted)
        assert below in LEVEL, f"give {below} a place in LAYERS"
        assert LEVEL[below] <= LEVEL[layer], f"{layer} imports {below}, which is above it"
