"""Rules of the house that no linter knows."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent

# What the tree may link to: licences, specifications, the vendor's and PyTorch's documentation.
LINKS = re.compile(r"https?://([^/\s\"'<>)]+)")
ALLOWED_HOSTS = {
    "arxiv.org",
    "aws.amazon.com",
    "awsdocs-neuron.readthedocs-hosted.com",
    "docs.pytorch.org",
    "github.com",
    "keepachangelog.com",
    "pytorch.org",
    "semver.org",
    "ui.perfetto.dev",  # the report's button opens a trace there
    "www.apache.org",
    "www.opencompute.org",
    "www.w3.org",  # the namespace of SVG
}
HOME = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w")  # someone's own folder


def tree() -> list[Path]:
    """The files of the source tree: what git tracks, or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of the tree's files")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def public_modules() -> list[Path]:
    paths = sorted((ROOT / "torch_trn_emu").rglob("*.py"))
    return [path for path in paths if not path.stem.startswith("_") or path.stem == "__init__"]


@pytest.mark.parametrize("path", public_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_public_module_lists_its_names(path):
    assigned = {
        target.id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert "__all__" in assigned


def cpp_files() -> list[Path]:
    return [path for path in tree() if path.suffix in (".cpp", ".h")]


def test_cpp_sources_are_ascii():
    assert [path for path in cpp_files() if not path.read_bytes().isascii()] == []


def test_a_header_of_kernels_compiles_alone():
    """Each instruction set compiles them; alone they are for any machine."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    headers = sorted((ROOT / "csrc/numerics").glob("*-inl.h"))
    assert headers
    for header in headers:
        command = [compiler, "-x", "c++", "-std=c++20", "-fsyntax-only", "-w", str(header)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def includes(path: Path) -> list[str]:
    return re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)", path.read_text(), re.MULTILINE)


def test_numerics_includes_no_torch_header():
    offenders = [
        (path.name, header)
        for path in cpp_files()
        if path.is_relative_to(ROOT / "csrc/numerics")
        for header in includes(path)
        if header.startswith(("torch/", "ATen/", "c10/"))
    ]
    assert offenders == []


def test_only_the_bindings_include_python():
    """bindings.cpp, and bind.cpp where a layer has bindings of its own."""
    python = re.compile(r"Python\.h|pybind11/|torch/(extension|python)\.h|torch/csrc/utils/python")
    offenders = [
        path.name
        for path in cpp_files()
        if path.is_relative_to(ROOT / "csrc") and path.name not in ("bindings.cpp", "bind.cpp")
        if any(python.match(header) for header in includes(path))
    ]
    assert offenders == []


def test_the_tree_holds_no_foreign_links_and_no_private_paths():
    for path in tree():
        text = path.read_text(errors="ignore")
        assert set(LINKS.findall(text)) <= ALLOWED_HOSTS, path
        assert HOME.findall(text) == [], path


def test_the_build_requirements_are_written_twice_alike():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    group = [r for r in project["dependency-groups"]["build"] if not r.startswith("torch")]
    assert project["build-system"]["requires"] == group


def test_the_torch_of_development_is_the_one_that_is_fetched():
    sys.path.insert(0, str(ROOT / "build_support"))
    try:
        import torch_choice
    finally:
        sys.path.pop(0)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert torch_choice.DEFAULT in project["dependency-groups"]["build"]
    assert torch_choice.supported(torch_choice.DEFAULT.partition("==")[2])
    assert [torch_choice.supported(v) for v in ("2.12.1", "2.14.1", "2.15.0")] == [0, 1, 0]


def test_every_requirement_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, group in project["dependency-groups"].items():
        loose = [r for r in group if isinstance(r, str) and "==" not in r]
        assert loose == [], name


def test_the_makefile_knows_the_tests_that_need_all_libraries():
    """A named test outside of WIDE installs the group `test-core` only."""
    wide = re.search(r"^WIDE := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert wide is not None
    known = wide[1].replace("\\\n", " ").split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    names = [r for g in ("examples", "ecosystem", "sklearn") for r in groups[g]]
    more = {re.split("[=;]", r)[0].replace("-", "_") for r in names if isinstance(r, str)}
    more = (more - {"scikit_learn"}) | {"sklearn", "triton", "pyarrow"}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
        }
        place = str(path.relative_to(ROOT))
        assert not imported & more or place.startswith(tuple(known)), (place, imported & more)


def test_limits_of_wall_time_only_end_what_hangs():
    """A busy machine is ten times slower: counts and processor time measure, seconds do not."""
    short = [
        (path.name, node.value.value)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "timeout"
        if isinstance(node.value, ast.Constant) and node.value.value < 300
    ]
    assert short == []
