"""Builds the C++ side with CMake; everything else stands in pyproject.toml."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# The package under construction must not be imported by the torch that builds it.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"


class CMakeBuild(build_ext):
    """Configures once, then builds what changed."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11
        import torch

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # One folder for each torch: an isolated build must not disturb the editable one.
        place = hashlib.sha256(torch.__file__.encode()).hexdigest()[:8]
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{place}"
        build.mkdir(parents=True, exist_ok=True)
        prefixes = f"{torch.utils.cmake_prefix_path};{pybind11.get_cmake_dir()}"
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_PREFIX_PATH={prefixes}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(
    ext_modules=[Extension("torch_trn_emu._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
