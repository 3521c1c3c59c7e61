"""The documentation: its examples run, its tutorials run, its pages name what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_trn_emu import current_precision, errors
from torch_trn_emu_cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# Pages whose examples stand alone; those of others are parts of a program.
GUIDES = {"getting_started", "parity", "precision", "survive_mxfp8"}
EXAMPLES = [
    pytest.param(code, id=f"{path.stem} {number}")
    for path in PAGES
    if path.stem in GUIDES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_of_a_page_runs(code):
    before = current_precision()
    try:
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    finally:
        torch.backends.trn.matmul.precision = before


@pytest.mark.conformance  # `make docs`, which CI runs as well, runs them
@pytest.mark.parametrize(
    "arguments",
    [["survive_mxfp8.py", "--steps", "12"], ["step_time.py"], ["several_ranks.py", "--ranks", "2"]],
    ids=lambda a: a[0],
)
def test_a_tutorial_runs(arguments, tmp_path):
    name, *options = arguments
    # torch's compiler imports what its own torch.jit calls deprecated.
    warnings = ["-W", "error", "-W", "ignore:`torch.jit.script"]
    command = [sys.executable, *warnings, str(ROOT / "docs/tutorials" / name), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_links_of_the_pages_lead_somewhere():
    """`make docs` asks the same of the site that it built."""
    command = [sys.executable, str(ROOT / "docs/links.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_described():
    page = (ROOT / "docs/command_line.md").read_text()
    assert [name for name in COMMANDS if f"`trn-emu {name}" not in page] == []


def test_every_kind_of_error_is_described():
    page = (ROOT / "docs/errors.md").read_text()
    kinds = set(errors.__all__) - {"TrnEmuError"}
    assert [kind for kind in kinds if f"| `{kind}` |" not in page] == []


def test_every_example_is_in_the_table_of_the_ecosystem():
    page = (ROOT / "docs/ecosystem.md").read_text()
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_every_page_is_reached_from_the_index():
    index = (ROOT / "docs/index.md").read_text()
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in PAGES} - {"index"}
    listed = set(re.findall(r"^[\w/-]+$", index, re.MULTILINE))
    assert {p for p in pages if not p.startswith("decisions/0") and "figures" not in p} <= listed
