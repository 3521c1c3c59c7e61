"""Runs the suite against another version of torch, in an environment of its own under build/.

python build_support/other_torch.py 2.14.1 tests/test_tiny.py
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from torch_choice import SUPPORTED, supported

ROOT = Path(__file__).resolve().parent.parent


def install(python: Path, torch: str, source: Path) -> None:
    """The pins of the group test-core, with another torch, and the package built against it."""
    listed = subprocess.run(
        [str(python), "-c", PINS, str(ROOT / "pyproject.toml")], stdout=subprocess.PIPE, check=True
    )
    pins = [pin for pin in listed.stdout.decode().splitlines() if not pin.startswith("torch==")]
    pip = [str(python), "-m", "pip", "install"]
    subprocess.run([*pip, f"torch=={torch}", *pins], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--no-deps", "-e", str(source)], check=True)


# pip, of which every environment has one, vendors a reader of TOML for Python 3.10.
PINS = """
import sys
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
groups = tomllib.load(open(sys.argv[1], "rb"))["dependency-groups"]
def pins(name):
    for entry in groups[name]:
        yield from pins(entry["include-group"]) if isinstance(entry, dict) else [entry]
print(*pins("test-core"), sep="\\n")
"""


def main(torch: str, *arguments: str) -> int:
    if not supported(torch):
        raise SystemExit(f"{torch} is not among {SUPPORTED}")
    folder = ROOT / "build" / f"venv-torch{torch}"
    python = folder / "bin/python"
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    os.environ.update(environment)
    # The package in the sources is built for one torch at a time: this one has a copy.
    copy = folder / "source"
    if not python.exists():
        venv.create(folder, with_pip=True)
    for old in copy.iterdir() if copy.exists() else ():  # files that the sources no longer have
        if old.name != "build":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT), dirs_exist_ok=True)
    install(python, torch, copy)
    os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD")
    tests = arguments or ("tests/trn", "tests/aten", "tests/test_tiny.py")
    return subprocess.run([str(python), "-m", "pytest", *tests], cwd=copy, check=False).returncode


LEFT = ("build", ".git", ".venv", "out", "*.so", "built_for.txt", "__pycache__", ".*_cache")

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
