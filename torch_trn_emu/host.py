"""The host backend: the torch device that holds the memory of trn tensors and computes on it."""

import importlib.util
from functools import cache

import torch

from .errors import Unsupported
from .settings import settings

__all__ = ["host_device", "host_name", "missing_for_cuda"]

TRITON = "3.7.1"  # the version that torch 2.13.0 is released with


@cache
def host_name() -> str:
    """cpu, cuda or foreign: what TRN_EMU_HOST asks for, with auto decided.

    Raises Unsupported for cuda where there is no GPU, or no Triton.
    """
    asked = settings().host
    if asked not in ("cuda", "auto"):
        return asked
    missing = missing_for_cuda()
    if asked == "cuda" and missing:
        raise Unsupported(f"TRN_EMU_HOST=cuda needs {missing} TRN_EMU_HOST=cpu needs neither.")
    return "cpu" if missing else "cuda"


def missing_for_cuda() -> str:
    """What a CUDA host lacks here, with the remedy; empty where nothing is missing."""
    if not torch.cuda.is_available():
        return (
            "a CUDA GPU that torch can use, and torch.cuda.is_available() is False "
            f"(torch {torch.__version__}). Install a CUDA build of torch and the GPU's driver."
        )
    if importlib.util.find_spec("triton") is None:
        return f"Triton, which is not installed: pip install triton=={TRITON}."
    return ""


@cache
def host_device() -> torch.device:
    """The host's torch device: that of the memory behind trn tensors, and of compiled host code."""
    return torch.device("cuda", 0) if host_name() == "cuda" else torch.device("cpu")
