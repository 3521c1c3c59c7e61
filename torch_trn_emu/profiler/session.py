"""`profile`: record what runs on the emulated cores, and report it.

with torch_trn_emu.profile() as prof:
    train_step()
print(prof.summary())
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import torch

from .. import _C
from ..pricing import OpRow, report_rows
from ..settings import settings
from . import export, html, summary, trace
from .communication import Collective, read_collectives
from .hooks import Scopes
from .memory import Block, replay
from .modules import ModuleRow, module_rows
from .recording import Launch, Origins, Recording, read
from .verdict import Verdict, judge

__all__ = ["profile"]

_LIBRARY = (Path(torch.__file__).parent, Path(__file__).parent.parent)
_active = Lock()


class profile:
    """Records every launch on the emulated cores between `start` and `stop`, as a context manager.

    record_shapes  keep the signature (dtypes and shapes) of each launch
    with_modules   attribute launches to the paths of modules, forward and backward
    with_stack     attribute them to the user's source lines too; takes some microseconds a launch
    max_launches   record so many; reports say how many more there were

    It can be entered again, around a region in a loop: the regions add up. Entering and leaving
    wait for the cores. All times are simulated; two runs give the same profile. Only one profile
    can be active in a process: RuntimeError otherwise.
    """

    def __init__(
        self,
        *,
        record_shapes: bool = True,
        with_modules: bool = True,
        with_stack: bool = False,
        max_launches: int = 1_000_000,
    ) -> None:
        self._shapes, self._sites = record_shapes, with_stack
        self._scopes = Scopes(with_modules)
        self._origins = Origins()
        self._launches: list[Launch] = []
        self._blocks: list[tuple[list[int], list[Block]]] = []  # HBM in use before, events
        self._regions: list[tuple[int, int, int]] = []
        self._began: list[int] = []
        self._allocated: list[int] = []
        self._collectives: list[Collective] = []
        self._collective_times = (0, 0, 0)
        self._collective_times_before = (0, 0, 0)
        self._running = False
        self._max_launches, self._left_out = max_launches, 0

    # --- recording -------------------------------------------------------------------------------

    def start(self) -> None:
        """Synchronize, then start recording."""
        if not _active.acquire(blocking=False):
            raise RuntimeError(
                "torch_trn_emu.profile: another profile is active already, and only one can record "
                "launches. Stop it first, or use it for both regions."
            )
        try:
            self._start()
        except BaseException:  # another profile may start
            _active.release()
            raise
        self._running = True

    def _start(self) -> None:
        self.__dict__.pop("recording", None)
        if self._sites:
            _C.find_sites_outside([str(folder) + "/" for folder in _LIBRARY])
        self._began = _clocks()
        self._allocated = [_allocated_bytes(device) for device in range(_C.device_count())]
        self._collective_times_before = _collective_times()
        room = max(0, self._max_launches - len(self._launches))
        for device in range(_C.device_count()):
            _C.start_collective_log(device, self._max_launches)
        _C.start_recording(sites=self._sites, limit=room)
        self._scopes.watch()

    def stop(self) -> None:
        """Synchronize, and add what ran since `start` to the profile."""
        if not self._running:
            raise RuntimeError("torch_trn_emu.profile: stop() was called without start().")
        self._scopes.leave_alone()
        raw = _C.stop_recording()
        self._running = False
        _active.release()
        clocks = _clocks()
        count, active, exposed = (
            total + max(0, now - before)  # counters may have been reset since
            for total, now, before in zip(
                self._collective_times,
                _collective_times(),
                self._collective_times_before,
                strict=True,
            )
        )
        self._collective_times = count, active, exposed
        for device in range(_C.device_count()):
            self._collectives += read_collectives(device, _C.stop_collective_log(device))
        sites = _C.sites()
        launches, blocks = read(
            raw,
            self._origins,
            path_of=lambda k: self._scopes.paths[k] if k >= 0 else "",
            owner_of=lambda leaf: self._scopes.owners.get(leaf, ""),
            source_of=lambda k: _source(*sites[k]) if k >= 0 else "",
            shapes=self._shapes,
        )
        before = len(self._launches)
        self._left_out += raw[-1]
        for device, (began, ended) in enumerate(zip(self._began, clocks, strict=True)):
            last = max((x.end_ns for x in launches if x.device == device), default=began)
            self._regions.append((device, began, last if raw[-1] else ended))
        self._blocks.append((self._allocated, [block.after(before) for block in blocks]))
        self._launches += launches

    def __enter__(self) -> "profile":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @cached_property
    def recording(self) -> Recording:
        """Everything recorded so far, as data. RuntimeError while the profile is active."""
        if self._running:
            raise RuntimeError(
                "torch_trn_emu.profile: results are available after stop(), or after the block."
            )
        chosen = settings()
        capacity = chosen.chip.hbm_bytes_per_logical_core(chosen.lnc)
        return Recording(
            chip=chosen.chip,
            lnc=chosen.lnc,
            launches=tuple(self._launches),
            regions=tuple(self._regions),
            memory={
                device: replay(self._blocks_of(device), capacity)
                for device in range(_C.device_count())
                if _C.hbm_in_use(device)
            },
            left_out=self._left_out,
            collectives=tuple(self._collectives),
            collective_times=self._collective_times,
        )

    def _blocks_of(self, device: int) -> Iterator[tuple[int, list[Block]]]:
        for allocated, blocks in self._blocks:
            yield allocated[device], [block for block in blocks if block.device == device]

    # --- reports ---------------------------------------------------------------------------------

    def counters(self) -> dict[str, float]:
        """The hardware counters of the profiled regions, as `torch.trn.counters()` names them."""
        return dict(self.recording.counters)

    def op_report(self) -> list[OpRow]:
        """Return a row for each operator and kind of price, longest first."""
        return report_rows(self.recording.groups)

    def module_report(self) -> list[ModuleRow]:
        """A row for each module and optimizer, in order of first use; see `ModuleRow`."""
        return module_rows(self.recording)

    def verdict(self) -> Verdict:
        """Return what limits the run, and the changes that would help most."""
        return judge(self.recording)

    def memory(self) -> dict[int, dict[str, int]]:
        """Return peak HBM usage by device, in bytes by category."""
        return {device: dict(use.peak) for device, use in self.recording.memory.items()}

    def summary(self, rows: int = 10, width: int = 100) -> str:
        """The profile as text for a terminal: engines, memory, verdict, top `rows`."""
        return summary.text(self.recording, rows, width)

    def _repr_html_(self) -> str:
        return html.notebook(self.recording) if not self._running else ""

    # --- files -----------------------------------------------------------------------------------

    def export_chrome_trace(
        self, path: str | Path, *, max_events: int = 300_000, skip_launches: int = 0
    ) -> None:
        """Write a trace for Perfetto or chrome://tracing; gzip if the name ends in ".gz".

        A process for each core, in it a lane for each engine and DMA queue, the host's dispatches,
        the launches, the modules, and HBM by category.

        max_events     bounds the file, some 150 bytes each: runs of instructions are merged until
                       they fit, then launches at the end are left out; the trace says what
        skip_launches  leave out so many launches at the beginning
        """
        trace.write(self.recording, Path(path), max_events, skip_launches)

    def export_html(self, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
        """Write one self-contained page: verdict, timeline, modules, memory, operators.

        about  what it says of the run: "title", "facts" (name to text) and "values"
        """
        text = html.page(self.recording, about=about or {})
        Path(path).write_text(text, encoding="utf-8")

    def export_json(self, path: str | Path) -> None:
        """Write counters, verdict, memory and all tables as one JSON object."""
        export.write_json(self.recording, Path(path))

    def export_parquet(self, folder: str | Path) -> None:
        """Write each table as a Parquet file into `folder`. ModuleNotFoundError without pyarrow."""
        export.write_parquet(self.recording, Path(folder))


def _clocks() -> list[int]:
    """Wait for every core; its simulated time in nanoseconds."""
    devices: Sequence[int] = range(_C.device_count())
    for device in devices:
        _C.synchronize(device)
    return [_C.host_ns(device) for device in devices]


def _collective_times() -> tuple[int, int, int]:
    """How many collectives ended, their active and their exposed nanoseconds, of all cores."""
    rows = [row for device in range(_C.device_count()) for row in _C.collective_rows(device)]
    count, active, exposed = (sum(row[k] for row in rows) for k in (1, 2, 3))
    return count, active, exposed


def _allocated_bytes(device: int) -> int:
    in_use = _C.hbm_in_use(device)
    return int(_C.memory_stats(device)["allocated_bytes"]) if in_use else 0


def _source(file: str, line: int, function: str) -> str:
    path = Path(file)
    for folder in map(Path, sys.path):
        if str(folder) and path.is_relative_to(folder):
            path = path.relative_to(folder)
            break
    return f"{path}:{line} {function}"
