"""Private names of torch stand in `torch_private` only, and each that stands there is used."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "torch_trn_emu"
HOME = PACKAGE / "torch_private"
SOURCES = [
    path
    for path in (*sorted(PACKAGE.rglob("*.py")), *sorted(ROOT.glob("torch_trn_emu_*.py")))
    if not path.is_relative_to(HOME)
]


def is_private(dotted: str) -> bool:
    """Whether torch says by an underscore that a part of the name is its own; operators are public:
    their schemas are kept compatible.
    """
    parts = dotted.split(".")
    if parts[:2] == ["torch", "ops"]:
        return False
    return any(p.startswith("_") and not p.startswith("__") for p in parts)


def imported(tree: ast.AST) -> dict[str, str]:
    """What names of a file stand for in torch."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    names[alias.asname or "torch"] = alias.name if alias.asname else "torch"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def named(tree: ast.AST) -> Iterator[str]:
    """The names of torch that a file imports, reads as attributes, or has in a string."""
    names = imported(tree)
    yield from names.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "torch")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            if parts[0] == "torch" and all(part.isidentifier() for part in parts):
                yield node.value
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in names:
            yield ".".join((names[node.id], *reversed(parts)))


def test_no_other_module_names_what_is_private_to_torch():
    offenders = [
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for name in named(ast.parse(path.read_text()))
        if is_private(name)
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch._ops import OpOverload",
        "from torch import _C",
        "import torch\ntorch._C.DispatchKey",
        "from torch import serialization as s\ns._get_restore_location = None",
        "name = 'torch._inductor.compile_fx'",
    ],
)
def test_every_way_to_name_one_is_seen(line):
    assert any(map(is_private, named(ast.parse(line))))


@pytest.mark.parametrize("path", sorted(HOME.glob("*.py")), ids=lambda path: path.stem)
def test_every_name_is_used(path):
    tree = ast.parse(path.read_text())
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    module = "torch_private" if path.stem == "__init__" else f"torch_private.{path.stem}"
    used = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").endswith(module):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {node.attr} if node.value.id == path.stem else set()
    assert sorted(set(listed) - used) == []
