"""`trn-emu doctor`: what is wrong with this installation, and what to do about it.

To add a check, write a function that returns a Finding, and list it in CHECKS.
"""

import importlib.util
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points

import torch

from torch_trn_emu import precision, trn
from torch_trn_emu.host import host_device, host_name, missing_for_cuda
from torch_trn_emu.settings import DEVICE_TYPE
from torch_trn_emu.trn.registration import startup_error

from .output import Report, Table, show

__all__ = ["CHECKS", "Finding", "execute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """state: "ok", "note" (works, with less) or "wrong"."""

    name: str
    state: str
    found: str
    remedy: str = ""


def execute(options: Namespace) -> int:
    findings = [_guarded(check) for check in CHECKS]
    rows = [(f.name, f.state, f.found, f.remedy) for f in findings]
    table = Table(title="Checks", head=("check", "", "found", "remedy"), rows=rows)
    wrong = sum(f.state == "wrong" for f in findings)
    lines = [f"{wrong} of {len(findings)} checks failed" if wrong else "everything works"]
    show(
        Report(data=[asdict(f) for f in findings], lines=lines, tables=[table]),
        as_json=options.json,
    )
    return int(wrong > 0)


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a check that fails is a finding
        name = check.__name__.lstrip("_").replace("_", " ")
        text = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return Finding(name=name, state="wrong", found=text, remedy="See the message on the left.")


def _torch() -> Finding:
    # The package refuses any other torch when it is imported, so this one fits.
    return Finding(name="torch", state="ok", found=f"{torch.__version__} ({torch.__file__})")


def _autoload() -> Finding:
    names = [entry.name for entry in entry_points(group="torch.backends")]
    if "torch_trn_emu" not in names:
        remedy = "Install the package: pip install . Until then, import torch_trn_emu first."
        return Finding(name="autoload", state="wrong", found="no entry point", remedy=remedy)
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        remedy = "Unset TORCH_DEVICE_BACKEND_AUTOLOAD, or import torch_trn_emu first."
        return Finding(name="autoload", state="note", found="switched off", remedy=remedy)
    return Finding(name="autoload", state="ok", found="import torch provides the device")


def _settings() -> Finding:
    if (error := startup_error()) is not None:
        remedy = "Correct or unset the variable named in the message."
        return Finding(name="settings", state="wrong", found=str(error), remedy=remedy)
    return Finding(name="settings", state="ok", found=trn.get_device_name())


def _host() -> Finding:
    name = host_name()
    if name != "cuda":
        here = "is not possible here" if missing_for_cuda() else "is possible"
        found = f"{name} (TRN_EMU_HOST=cuda {here}; tested in Triton's interpreter only)"
        return Finding(name="host backend", state="ok", found=found)
    found = (
        f"cuda ({torch.cuda.get_device_name(host_device())}), tested in Triton's interpreter only"
    )
    remedy = "Verify important values with TRN_EMU_HOST=cpu; see docs/cuda-host.md."
    return Finding(name="host backend", state="note", found=found, remedy=remedy)


def _vector_instructions() -> Finding:
    found = torch.backends.cpu.get_cpu_capability()
    if found in ("DEFAULT", "NO AVX"):
        remedy = "Matrix multiplies are many times faster on a host with AVX2."
        return Finding(name="vector instructions", state="note", found=found, remedy=remedy)
    return Finding(name="vector instructions", state="ok", found=found)


def _compiler() -> Finding:
    path = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if path is None:
        remedy = "torch.compile needs a C++ compiler: install g++, or set CXX."
        return Finding(name="compiler", state="note", found="none", remedy=remedy)
    return Finding(name="compiler", state="ok", found=path)


def _memory() -> Finding:
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = trn.get_device_properties(0).total_memory / 2**30
    text = f"host {host:.0f} GiB, emulated {device:.0f} GiB per device"
    remedy = (
        "A model that fits the chip may not fit into the host's memory, which is a separate error."
    )
    state = "ok" if host > device else "note"
    return Finding(name="memory", state=state, found=text, remedy=remedy if host <= device else "")


def _computes() -> Finding:
    torch.manual_seed(0)
    a = torch.randn(64, 64)
    with precision("fp32"):
        same = torch.equal((_on_device(a) @ _on_device(a)).cpu(), a @ a)
    with precision("mxfp8"):
        error = float(((_on_device(a) @ _on_device(a)).cpu() - a @ a).norm() / (a @ a).norm())
    if same and 0 < error < 0.1:
        return Finding(
            name="computes",
            state="ok",
            found=f"fp32 matches the CPU bit for bit; MXFP8 differs by {100 * error:.1f} % "
            "(expected below 10 %)",
        )
    remedy = (
        "Rebuild with make clean build. If the problem persists, please report it with this table."
    )
    matches = "matches" if same else "does not match"
    found = f"fp32 {matches} the CPU; MXFP8 differs by {100 * error:.1f} % (expected below 10 %)"
    return Finding(name="computes", state="wrong", found=found, remedy=remedy)


def _numpy() -> Finding:
    if importlib.util.find_spec("numpy") is None:
        remedy = "Required for golden vectors and TRN_EMU_EXECUTOR=machine: pip install numpy"
        return Finding(name="numpy", state="note", found="none", remedy=remedy)
    return Finding(name="numpy", state="ok", found="installed")


def _python() -> Finding:
    return Finding(name="python", state="ok", found=f"{sys.version.split()[0]} ({sys.executable})")


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(DEVICE_TYPE)


CHECKS = (
    _python,
    _torch,
    _autoload,
    _settings,
    _host,
    _vector_instructions,
    _compiler,
    _memory,
    _numpy,
    _computes,
)
