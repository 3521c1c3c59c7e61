"""Folders with and without the compiled library: torch stays usable, and the remedy is named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_trn_emu

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
USE = "import torch; print(torch.ones(1, device='trn').device, torch.ones(1).tolist())"
# The environment's own installation, which every case but the first two replaces.
ALONE = f"""
import sys
sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""


def package(folder: Path, *, library: bool) -> Path:
    """A copy of the package in `folder`, with the library or without it."""
    without = shutil.ignore_patterns("*.so", "built_for.txt", "__pycache__")
    shutil.copytree(ROOT / "torch_trn_emu", folder / "torch_trn_emu", ignore=without)
    shutil.copy(ROOT / "torch_trn_emu_autoload.py", folder)
    if library:
        for file in (ROOT / "torch_trn_emu").glob("_C*.so"):
            (folder / "torch_trn_emu" / file.name).symlink_to(file)
        shutil.copy(ROOT / "torch_trn_emu/built_for.txt", folder / "torch_trn_emu")
    return folder


def entry_point(folder: Path) -> Path:
    """The metadata of an installation: what `import torch` finds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"{k} = {v}" for k, v in project["entry-points"]["torch.backends"].items()]
    metadata = folder / "torch_trn_emu-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_trn_emu\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("\n".join(["[torch.backends]", *lines, ""]))
    return folder


@pytest.fixture
def python(tmp_path):
    """Runs code, started in `cwd`, with `tmp_path/site` before the environment's packages."""
    site = tmp_path / "site"
    site.mkdir()
    entry_point(site)

    def run(code: str, cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *options, "-c", code],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(site), "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone/CMakeLists.txt").touch()
    return package(tmp_path / "clone", library=False)


def test_a_clone_without_the_library_gives_way_to_an_installed_copy(python, clone, tmp_path):
    package(tmp_path / "site", library=True)
    code = f"{USE}; import torch_trn_emu.cli; print(torch_trn_emu.cli.__file__)"
    done = python(code, clone, "-W", "error")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"trn:0 [1.0]\n{tmp_path / 'site/torch_trn_emu/cli/__init__.py'}\n"
    assert done.stderr == ""


def test_a_clone_without_the_library_gives_way_to_an_editable_installation(python, clone):
    done = python(USE, clone, "-W", "error")
    assert (done.stdout, done.stderr) == ("trn:0 [1.0]\n", "")


def test_an_installed_copy_of_another_version_is_not_mixed_in(python, clone, tmp_path):
    installed = package(tmp_path / "site", library=True) / "torch_trn_emu/__init__.py"
    installed.write_text(installed.read_text() + "# another version\n")
    done = python(f"{ALONE}import torch; print(torch.ones(1).tolist())", clone)
    assert done.stdout == "[1.0]\n"
    assert f"run `pip install -e .` in {clone}" in done.stderr


@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=["default", "warnings are errors"])
def test_torch_works_without_the_library_and_the_remedy_is_named(python, clone, options):
    code = f"""{ALONE}
import torch
print(torch.ones(1).tolist(), hasattr(torch, "trn"), torch._C._get_privateuse1_backend_name())
"""
    done = python(code, clone, *options)
    assert done.stdout == "[1.0] False privateuseone\n", done.stderr
    assert f"run `make build` or `pip install -e .` in {clone}" in done.stderr
    assert "circular" not in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_package_without_the_library_raises(python, clone):
    for code in ("import torch_trn_emu", "import torch\nimport torch_trn_emu"):
        done = python(f"{ALONE}\n{code}", clone)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError:"), done.stderr
        assert "run `make build`" in last


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("_C{suffix}", b"not a library", "cannot be loaded"),
        ("built_for.txt", b"2.12.1\n", "built for torch 2.12.1, but torch "),
    ],
    ids=["broken library", "another torch"],
)
def test_torch_works_beside_a_library_that_does_not_fit(python, tmp_path, file, content, cause):
    folder = package(tmp_path / "site", library=True) / "torch_trn_emu"
    name = next(folder.glob("_C*.so")).name if file.startswith("_C") else file
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    done = python("import torch; print(torch.ones(1).tolist())", tmp_path)
    assert done.stdout == "[1.0]\n"
    assert cause in done.stderr
    assert "--no-build-isolation" in done.stderr


def test_completion_offers_the_public_names_and_no_others():
    assert set(dir(torch_trn_emu)) == {*torch_trn_emu.__all__, "__version__"}
    for module in (torch_trn_emu, torch.backends.trn):
        assert all(hasattr(module, name) for name in dir(module))
    assert dir(torch.backends.trn) == ["is_built", "matmul"]
