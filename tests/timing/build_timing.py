"""Builds csrc/timing as a module of its own where the package's extension does not have it."""

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-O3 -std=c++20 -Wall -Wextra -Wconversion -Werror -fPIC -shared"
_MODULE = """
#include <pybind11/pybind11.h>
namespace trn::timing { void bind_timing(pybind11::module_&); }
PYBIND11_MODULE(_trn_timing, m) { trn::timing::bind_timing(m); }
"""


def build_timing() -> None:
    """Compile into build/timing, once per state of the sources, and put it on the path."""
    from torch_trn_emu import _C

    if hasattr(_C, "schedule"):
        return
    import pybind11

    sources = sorted((ROOT / "csrc/timing").glob("*.cpp"))
    text = b"".join(p.read_bytes() for p in sorted((ROOT / "csrc/timing").iterdir()))
    digest = hashlib.sha256(text).hexdigest()[:16]
    folder = ROOT / "build/timing" / digest
    target = folder / ("_trn_timing" + sysconfig.get_config_var("EXT_SUFFIX"))
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "module.cpp").write_text(_MODULE)
        subprocess.run(
            [
                "g++",
                *FLAGS.split(),
                f"-I{ROOT / 'csrc'}",
                f"-isystem{pybind11.get_include()}",
                f"-isystem{sysconfig.get_path('include')}",
                *map(str, sources),
                str(folder / "module.cpp"),
                "-o",
                str(target),
            ],
            check=True,
        )
    sys.path.insert(0, str(folder))
