"""`torch_neuronx.profiling`: torch's profiler with the vendor's configuration and exporter.

The trace is torch's own, with the emulated core's rows; the vendor's files of the runtime and the
device are not written. `torch_trn_emu.profile()` has what the engines did.
"""

import os
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.profiler import ProfilerActivity, profile

from ...torch_private import ExperimentalConfig

__all__ = ["NRTProfilerError", "NeuronConfig", "NeuronProfiler", "ProfileMode"]


class NRTProfilerError(Exception):
    """That `except` may name it."""


class ProfileMode(Enum):
    """What the vendor's profiler would record."""

    DEVICE = "device"
    RUNTIME = "runtime"
    CPU_UTIL = "cpu_util"
    HOST_MEMORY = "host_memory"


class NeuronConfig(ExperimentalConfig):
    """`experimental_config` of `torch.profiler.profile`; only the folder has an effect."""

    def __init__(
        self,
        modes: Sequence[ProfileMode] = (ProfileMode.DEVICE, ProfileMode.RUNTIME),
        max_events_per_nc: int | None = None,
        capture_enabled_for_nc: str | None = None,
        profile_output_dir: str = "./output",
        neff_cache_dir: str | None = None,
        precache_node_info: bool = True,
    ) -> None:
        super().__init__()
        self.modes = list(modes)
        self.max_events_per_nc = max_events_per_nc
        self.capture_enabled_for_nc = capture_enabled_for_nc
        self.profile_output_dir = profile_output_dir
        self.neff_cache_dir = neff_cache_dir
        self.precache_node_info = precache_node_info


class NeuronProfiler:
    """Writes the trace of a profile where the configuration says.

    `NeuronProfiler(config).export_trace` serves as `on_trace_ready`; as a context manager it
    profiles by itself, with the arguments of the vendor's earlier releases.
    """

    def __init__(
        self,
        config: NeuronConfig | None = None,
        *,
        pytorch_activities: Sequence[ProfilerActivity] | None = None,
        record_shapes: bool = False,
        pytorch_trace_file: str | None = None,
        neuron_output_dir: str = "./output",
        event_filters: Any = None,
    ) -> None:
        self.config = config or NeuronConfig(profile_output_dir=neuron_output_dir)
        self.neuron_output_dir = self.config.profile_output_dir
        self.pytorch_activities = list(pytorch_activities or ())
        self.record_shapes = record_shapes
        self.event_filters = event_filters
        self.pytorch_trace_file = str(
            Path(self.neuron_output_dir) / (pytorch_trace_file or "pytorch_trace.json")
        )
        self._running: profile | None = None
        self._done: profile | None = None

    def export_trace(self, prof: profile) -> None:
        """Write `trace.json` into a folder of this process and moment, as the vendor's tools do."""
        stamp = time.strftime("%Y%m%d_%H%M%S") + f"_{time.time_ns() // 10**6 % 1000:03d}"
        folder = Path(self.config.profile_output_dir) / f"emulated_pid_{os.getpid()}" / stamp
        folder.mkdir(parents=True, exist_ok=True)
        prof.export_chrome_trace(str(folder / "trace.json"))

    def start(self) -> None:
        """Raises RuntimeError while it runs already."""
        if self._running is not None:
            raise RuntimeError("Profiler is already active")
        wanted = self.pytorch_activities or [ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]
        self._running = profile(activities=wanted, record_shapes=self.record_shapes)
        self._running.__enter__()

    def stop(self) -> None:
        """Write the trace. Raises RuntimeError unless it runs."""
        if self._running is None:
            raise RuntimeError("Profiler is not active")
        running, self._running = self._running, None
        running.__exit__(None, None, None)
        self._done = running
        Path(self.neuron_output_dir).mkdir(parents=True, exist_ok=True)
        running.export_chrome_trace(self.pytorch_trace_file)

    def __enter__(self) -> "NeuronProfiler":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def is_active(self) -> bool:
        return self._running is not None

    def has_pytorch_profiling(self) -> bool:
        return bool(self.pytorch_activities)

    def get_nrt_output_directory(self) -> str:
        return self.neuron_output_dir

    def get_pytorch_trace(self) -> str | None:
        """The file of the last trace; None before."""
        return self.pytorch_trace_file if self._done is not None else None

    def export_pytorch_trace(self, filename: str) -> None:
        """Write the last trace again. Raises ValueError before there is one."""
        if self._done is None:
            raise ValueError("PyTorch profiling not enabled or not started")
        self._done.export_chrome_trace(filename)
