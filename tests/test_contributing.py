"""The additions that CONTRIBUTING.md shows are in the sources, and take the files that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
ADDITIONS = TEXT[TEXT.index("## Additions as diffs") : TEXT.index("## Rules")]
SOURCES = [
    path
    for folder in ("torch_trn_emu", "csrc")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".h", ".def")
] + list(ROOT.glob("torch_trn_emu_*.py"))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def test_the_lines_shown_are_those_of_the_sources() -> None:
    every = {_squeezed(line) for path in SOURCES for line in path.read_text().splitlines()}
    shown = [line[1:] for line in ADDITIONS.splitlines() if line.startswith("+")]
    assert len(shown) >= 10
    missing = [line for line in shown if _squeezed(line) not in every]
    assert not missing


def test_the_files_named_exist() -> None:
    named = re.findall(r"`((?:torch_trn_emu|csrc|tests|docs|benchmarks)/[\w/.]+)`", ADDITIONS)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("word", "files"),
    [
        ("float6_e2m3fn", ["torch_trn_emu/formats/formats.def"]),
        ("float6_e3m2fn", ["torch_trn_emu/formats/formats.def"]),
        ("mxfp6_e2m3", ["torch_trn_emu/formats/formats.def"]),
        ("mxint8", ["torch_trn_emu/formats/formats.def"]),
        ("ocp_floor", ["torch_trn_emu/formats/formats.def"]),
        ("rceil", ["torch_trn_emu/formats/formats.def"]),
        ("trn4", ["torch_trn_emu/chip/chips.py", "torch_trn_emu/chip/systems.py"]),
        ("activation_table_load_count", ["torch_trn_emu/counters.py"]),
        ("heaviside", ["torch_trn_emu/ops/elementwise.py"]),
    ],
)
def test_an_addition_takes_the_files_that_it_names(word: str, files: list[str]) -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if re.search(rf"\b{word}\b", path.read_text())
    ]
    assert sorted(found) == files
    assert all(f"`{name}`" in ADDITIONS for name in files)
