"""A run as data: what `trn-emu run --profile` writes, and `report`, `diff` and `coverage` read."""

import json
import os
import platform
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import torch_trn_emu
from torch_trn_emu.precision import current_precision
from torch_trn_emu.profiler import profile
from torch_trn_emu.profiler.export import as_json

__all__ = ["FORMAT", "Values", "read_record", "record_of", "versions"]

FORMAT = 1  # of the file; a reader of another number refuses it

Record = dict[str, Any]


class Values(TorchFunctionMode):
    """Notes each number that the script reads from a floating tensor: its losses, its metrics."""

    def __init__(self, script: str) -> None:
        super().__init__()
        self._script = os.path.abspath(script)
        self.rows: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _READS and args[0].is_floating_point():
            self.rows.append({"where": self._where(), "value": float(result)})
        return result

    def _where(self) -> str:
        """The line of the script, or else of the code that read the number."""
        caller = sys._getframe(2)
        frame: FrameType | None = caller
        while frame is not None and os.path.abspath(frame.f_code.co_filename) != self._script:
            frame = frame.f_back
        found = frame or caller
        return f"{Path(found.f_code.co_filename).name}:{found.f_lineno}"


_READS = frozenset((torch.Tensor.item, torch.Tensor.__float__))


def versions() -> dict[str, str]:
    """Of everything that decides on values and times."""
    return {
        "torch_trn_emu": torch_trn_emu.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def record_of(
    command: list[str], profiled: profile, values: list[dict[str, Any]], ended: str
) -> Record:
    """A profile's tables, what was run, and the numbers it read.

    ended  "well", "with an error" or "by Ctrl-C"
    """
    found = as_json(profiled.recording)
    return {
        "format": FORMAT,
        "command": command,
        "ended": ended,
        "lnc": found["physical_cores_per_logical_core"],
        "matmul": current_precision(),
        "versions": versions(),
        "values": values,
        **found,
    }


def read_record(path: str | Path) -> Record:
    """A record from a file, or from the folder that `run --profile` wrote.

    Raises FileNotFoundError, or ValueError for another file or another version of it.
    """
    file = Path(path) / "run.json" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise FileNotFoundError(f"no record {file}: write one with `trn-emu run --profile`.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(
            f"{file} is no record of format {FORMAT}: write one with `trn-emu run --profile`."
        )
    return record
