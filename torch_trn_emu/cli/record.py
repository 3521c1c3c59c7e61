"""A run as data: what `trn-emu run --profile` writes, and `report`, `diff` and `coverage` read."""

import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import torch_trn_emu
from torch_trn_emu.precision import current_precision
from torch_trn_emu.profiler import profile
from torch_trn_emu.profiler.export import as_json
from torch_trn_emu.settings import settings
from torch_trn_emu.torch_private import DisableTorchFunction
from torch_trn_emu.trn.distributed import place_in_world

__all__ = ["FORMAT", "Values", "about_run", "read_record", "record_of", "versions"]

FORMAT = 1  # of the file; a reader of another number refuses it

Record = dict[str, Any]
_TORCH = str(Path(torch.__file__).parent) + os.sep
_BETWEEN = (_TORCH + "overrides.py", _TORCH + "_tensor.py")  # of methods written in Python


class Values(TorchFunctionMode):
    """Notes each number that the script reads from a floating tensor: its losses, its metrics.

    What torch reads for itself, such as an optimizer its step counters, is none of the script's.
    """

    def __init__(self, script: str) -> None:
        super().__init__()
        self._script = os.path.abspath(script)
        self.rows: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _READS and isinstance(args[0], torch.Tensor) and _is_number(args[0]):
            where = self._where()
            if where:
                with DisableTorchFunction():
                    value = result if isinstance(result, float) else args[0].detach().item()
                self.rows.append({"where": where, "value": float(value)})
        return result

    def _where(self) -> str:
        """The line of the script, or else of the code that read the number; "" for torch's own."""
        caller = sys._getframe(2)
        while caller.f_code.co_filename in _BETWEEN and caller.f_back is not None:
            caller = caller.f_back
        if caller.f_code.co_filename.startswith(_TORCH):
            return ""
        frame: FrameType | None = caller
        while frame is not None and os.path.abspath(frame.f_code.co_filename) != self._script:
            frame = frame.f_back
        found = frame or caller
        return f"{Path(found.f_code.co_filename).name}:{found.f_lineno}"


_READS = frozenset(
    getattr(torch.Tensor, name) for name in ("item", "__float__", "__format__", "tolist")
)


def _is_number(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() == 1


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

    ended  "well", "with an error", "by Ctrl-C", "by SIGTERM" or "by SIGHUP"
    """
    found = as_json(profiled.recording)
    rank, world = place_in_world()
    return {
        "format": FORMAT,
        "command": command,
        "ended": ended,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "lnc": found["physical_cores_per_logical_core"],
        "matmul": current_precision(),
        "versions": versions(),
        "values": values,
        "rank": rank,
        "world": world,
        "system": settings().system.name,
        **found,
    }


ENDINGS = {
    "well": "finished",
    "with an error": "ended with an error",
    "by Ctrl-C": "interrupted",
    "by SIGTERM": "terminated",
    "by SIGHUP": "hung up",
}


def about_run(record: Record) -> dict[str, Any]:
    """What a page says of a run: the script, its arguments, how it ended, versions, numbers."""
    return {
        "title": record["command"][0],
        "facts": {
            "script": " ".join(record["command"]),
            "ended": ENDINGS.get(record["ended"], record["ended"]),
            "date": record.get("date", ""),
            "matmul policy": record["matmul"],
            "versions": ", ".join(f"{name} {v}" for name, v in record["versions"].items()),
        },
        "values": record["values"],
    }


def read_record(path: str | Path) -> Record:
    """A record from a file, or from the folder that `run --profile` wrote.

    Raises FileNotFoundError, or ValueError for another file, another version of it, or a field
    that is missing or of the wrong kind.
    """
    file = Path(path) / "run.json" if Path(path).is_dir() else Path(path)
    if not file.exists() and (first := file.parent / "rank0" / "run.json").exists():
        file = first  # of several ranks
    if not file.exists():
        raise FileNotFoundError(f"{file} not found. Record a run with `trn-emu run --profile`.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is not JSON ({error}). Record a run with `trn-emu run --profile`."
        ) from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{file} is not a record of format {FORMAT} (format: {found!r}). Record a run with "
            "`trn-emu run --profile`."
        )
    wrong = _wrong_field(record, _FIELDS, "")
    if wrong:
        raise ValueError(f"{file}: {wrong}. Record the run again with `trn-emu run --profile`.")
    return record  # type: ignore[no-any-return]


_NUMBER = (int, float)
# What the readers need. A list holds the fields of each of its rows.
_FIELDS: dict[str, Any] = {
    "command": list,
    "ended": str,
    "chip": str,
    "lnc": int,
    "matmul": str,
    "elapsed_s": _NUMBER,
    "versions": dict,
    "counters": {"core_busy_time": _NUMBER},
    "memory_peak_bytes": dict,
    "verdict": {"sentence": str, "changes": [{"text": str}]},
    "values": [{"where": str, "value": _NUMBER}],
    "ops": [{"op": str, "calls": int, "device_s": _NUMBER, "share": _NUMBER, "engine": str,
             "status": str, "note": str}],
    "modules": [{"module": str, "calls": int, "total_s": _NUMBER, "forward_s": _NUMBER,
                 "backward_s": _NUMBER, "share": _NUMBER}],
}  # fmt: skip


def _wrong_field(value: Any, wanted: Any, name: str) -> str:
    """What is wrong with a field, named as in `values[3].value`; "" for nothing."""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return f"field {name!r} is not an object"
        for key, inner in wanted.items():
            full = f"{name}.{key}" if name else key
            if key not in value:
                return f"field {full!r} is missing"
            if wrong := _wrong_field(value[key], inner, full):
                return wrong
        return ""
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return f"field {name!r} is not a list"
        rows = (_wrong_field(row, wanted[0], f"{name}[{i}]") for i, row in enumerate(value))
        return next((wrong for wrong in rows if wrong), "")
    if not isinstance(value, wanted) or isinstance(value, bool):
        kind = wanted.__name__ if isinstance(wanted, type) else "number"
        return f"field {name!r} is {value!r}, not a {kind}"
    return ""
