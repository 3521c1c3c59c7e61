"""Builds the C++ library with CMake and requires the torch that it is built against.

Everything else stands in pyproject.toml.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "build_support"))

from presentation import long_description, project_urls  # noqa: E402
from torch_choice import SUPPORTED, Torch, dependency, found  # noqa: E402

# The package under construction must not be imported by the torch that builds it.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"


def chosen_torch() -> Torch:
    if not sys.platform.startswith("linux"):
        raise SystemExit(
            f"torch_trn_emu builds on Linux only, not on {sys.platform}: docs/installation.md"
        )
    torch = found()
    if torch is None:
        raise SystemExit(f"no {SUPPORTED} to build against: pip install 'torch==2.13.0'")
    return torch


def program(name: str) -> str:
    """CMake or Ninja as pyproject.toml pins it, from where pip put it; else that of the path.

    Another version of CMake would start the build folder anew.
    """
    spec = find_spec(name)
    beside = Path(spec.origin).parents[4] / "bin" if spec and spec.origin else None
    found = shutil.which(name, path=str(beside)) if beside else None
    found = found or shutil.which(name)
    if found is None:
        raise SystemExit(f"no {name} to build with: pip install {name}")
    return found


def linked(folder: Path, name: str, target: Path) -> Path:
    """A link of a fixed name: an isolated build finds its packages in another folder each time."""
    link = folder / name
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)
    return link


class CMakeBuild(build_ext):
    """Configures, then builds what changed: isolated builds share one folder for each torch."""

    def build_extension(self, ext: Extension) -> None:
        torch = chosen_torch()
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-torch{torch.version}"
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            shutil.rmtree(build)  # the clone was moved, which CMake refuses to follow
        build.mkdir(parents=True, exist_ok=True)
        prefix = linked(build, "torch", torch.folder) / "share/cmake"
        cmake = program("cmake")
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",
            f"-DCMAKE_PREFIX_PATH={prefix}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
        ]
        print(f"compiling for torch {torch.version} in {torch.folder}", flush=True)
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build)], check=True)

    def copy_extensions_to_source(self) -> None:
        """For an editable installation: setuptools does not know of the file beside the library."""
        super().copy_extensions_to_source()
        package = Path(self.build_lib) / "torch_trn_emu"
        shutil.copy(package / "built_for.txt", ROOT / "torch_trn_emu")


setup(
    ext_modules=[Extension("torch_trn_emu._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    long_description=long_description(ROOT / "README.md"),
    long_description_content_type="text/markdown",
    project_urls=project_urls(),
    install_requires=[
        dependency(),
        "numpy>=2,<3",  # torch warns without it at each import
        "jinja2>=3.1,<4",  # the pages, every value escaped; torch needs it too
        "rich>=13.7,<16",  # tables and progress on a terminal
        "shtab>=1.7,<2",  # completion in shells
    ],
)
