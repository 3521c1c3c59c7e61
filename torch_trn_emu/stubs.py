"""Types of what the device adds to torch, for mypy and pyright.

    python -m torch_trn_emu.stubs          # writes ./typings

`torch.trn`, `torch.backends.trn`, `Tensor.is_trn`, `Tensor.trn()` and `Module.trn()` exist only
once torch runs, so a type checker, which reads torch's files, does not know them. The folder holds
copies of some files of the installed torch, with the additions. pyright finds `./typings` by itself
and needs `"ignore": ["typings"]`; mypy needs `mypy_path = "typings"`. Run it again after an update
of torch: docs/typing.md.

Checked on torch 2.13.0.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["main", "write_stubs"]

_HEADER = """\
# Made by `python -m torch_trn_emu.stubs` from torch {version}; do not edit.
# mypy: ignore-errors
"""

_TENSOR = """\
    is_trn: _bool
    def trn(
        self,
        device: _device | _int | str | None = None,
        non_blocking: _bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Tensor: ...

"""
_MODULE = "    def trn(self, device: int | device | None = None) -> Self: ...\n\n"
_BACKENDS = '''\
"""`torch.backends.trn`."""

from torch_trn_emu.precision import _Matmul

matmul: _Matmul

def is_built() -> bool: ...
'''
_DEVICE = '"""`torch.trn`."""\n\nfrom torch_trn_emu.trn import *\n'


def _before(marker: str, addition: str) -> Callable[[str], str]:
    """Insert `addition` before the one line that starts with `marker`."""

    def insert(text: str) -> str:
        places = [m.start() for m in re.finditer(f"^{re.escape(marker)}", text, re.MULTILINE)]
        if len(places) != 1:
            raise RuntimeError(
                f"torch {torch.__version__} declares {marker.strip()!r} {len(places)} times, not "
                "once: these stubs are not checked on it."
            )
        return text[: places[0]] + addition + text[places[0] :]

    return insert


def _after_all(addition: str) -> Callable[[str], str]:
    return lambda text: f"{text}\n{addition}"


# File of torch, and what is added to it.
_COPIES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("__init__.py", _after_all('import torch.trn as trn\n__all__ += ["trn"]\n')),
    ("_C/__init__.pyi", _before("    def cuda(", _TENSOR)),
    ("backends/__init__.py", _after_all('import torch.backends.trn as trn\n__all__ += ["trn"]\n')),
    ("nn/__init__.py", _after_all("")),
    ("nn/modules/module.py", _before("    def cuda(self", _MODULE)),
)  # fmt: skip
_NEW = (("trn.pyi", _DEVICE), ("backends/trn.pyi", _BACKENDS))


def _absolute(text: str, folder: Path, package: str) -> str:
    """Import submodules by their full name: those are found where this folder has no copy."""
    lines = text.splitlines()
    exported: list[str] = []
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            new = [_import(package, folder, alias) for alias in node.names]
            exported += [a.asname for a in node.names if a.asname]
            lines[node.lineno - 1 : node.end_lineno] = new
    assigned = "__all__ +=" if re.search(r"^__all__\b", text, re.MULTILINE) else "__all__ ="
    lines.append(f"{assigned} {exported!r}")
    return "\n".join(lines) + "\n"


def _import(package: str, folder: Path, alias: ast.alias) -> str:
    name, known_as = alias.name, alias.asname or alias.name
    if (folder / name).is_dir() or any(folder.glob(f"{name}.py*")):
        return f"import {package}.{name} as {known_as}"
    return f"from {package} import {name} as {known_as}"


def _copied(source: Path, name: str) -> str:
    path = source / name
    package = ".".join(("torch", *path.parent.relative_to(source).parts))
    text = path.read_text("utf-8")
    return _absolute(text, path.parent, package) if path.name == "__init__.py" else text


def write_stubs(folder: Path) -> list[Path]:
    """Write the stubs of the installed torch into `folder` and return their paths."""
    source = Path(torch.__file__).parent
    header = _HEADER.format(version=torch.__version__)
    written = []
    texts = [(name, add(_copied(source, name))) for name, add in _COPIES]
    # Modules import `Module` from their own folder, which must therefore be whole.
    named = {name for name, _ in texts}
    siblings = sorted(path.relative_to(source) for path in source.glob("nn/modules/*.py"))
    texts += [(str(p), (source / p).read_text("utf-8")) for p in siblings if str(p) not in named]
    for name, text in (*texts, *_NEW):
        target = (folder / "torch" / name).with_suffix(".pyi")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(header + text, "utf-8")
        written.append(target)
    return written


def main(arguments: list[str]) -> None:
    description = "Write type stubs of torch with the device trn, for mypy and pyright."
    parser = argparse.ArgumentParser(prog="python -m torch_trn_emu.stubs", description=description)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("typings"))
    for path in write_stubs(parser.parse_args(arguments).folder):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
