"""Time by module: what each module and optimizer launched, forward and backward."""

from collections.abc import Iterable
from dataclasses import dataclass

from .recording import Launch, Recording

__all__ = ["ModuleRow", "SourceRow", "module_rows", "source_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """One module or optimizer; "" is what ran outside all of them.

    calls     launches of the module itself and of the modules below it
    own_s     core time of the module itself
    total_s   with the modules below it; `forward_s` and `backward_s` are parts of it
    wait_s    the core waited for the host before these launches
    share     of the time that the cores worked, 0 to 1, of total_s
    """

    module: str
    calls: int
    own_s: float
    total_s: float
    forward_s: float
    backward_s: float
    wait_s: float
    share: float


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    own_ns: int = 0
    total_ns: int = 0
    forward_ns: int = 0
    backward_ns: int = 0
    wait_ns: int = 0

    def add(self, launch: Launch, own: bool) -> None:
        self.calls += 1
        self.own_ns += launch.duration_ns * own
        self.total_ns += launch.duration_ns
        self.forward_ns += launch.duration_ns * (launch.phase == "forward")
        self.backward_ns += launch.duration_ns * (launch.phase == "backward")
        self.wait_ns += launch.idle_ns


def _above(path: str) -> Iterable[str]:
    """The path and those above it."""
    parts = path.split(".")
    return (".".join(parts[:n]) for n in range(len(parts), 0, -1))


def module_rows(recording: Recording) -> list[ModuleRow]:
    """A row for each path that launched, or has a path below it that did, sorted by path."""
    sums: dict[str, _Sum] = {}
    for launch in recording.launches:
        for path in _above(launch.module):
            sums.setdefault(path, _Sum()).add(launch, own=path == launch.module)
    busy_ns = sum(launch.duration_ns for launch in recording.launches) or 1
    return [
        ModuleRow(
            module=path,
            calls=s.calls,
            own_s=s.own_ns * 1e-9,
            total_s=s.total_ns * 1e-9,
            forward_s=s.forward_ns * 1e-9,
            backward_s=s.backward_ns * 1e-9,
            wait_s=s.wait_ns * 1e-9,
            share=s.total_ns / busy_ns,
        )
        for path, s in sorted(sums.items(), key=lambda item: _natural(item[0]))
    ]


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts layer 10 behind layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """One line of the user's source: launches that it made, and those of their backward pass."""

    source: str
    calls: int
    device_s: float
    share: float


def source_rows(recording: Recording) -> list[SourceRow]:
    """A row for each source line, longest first; empty without `with_stack`."""
    calls: dict[str, int] = {}
    times: dict[str, int] = {}
    for launch in recording.launches:
        if launch.source:
            calls[launch.source] = calls.get(launch.source, 0) + 1
            times[launch.source] = times.get(launch.source, 0) + launch.duration_ns
    busy_ns = sum(launch.duration_ns for launch in recording.launches) or 1
    return [
        SourceRow(source=s, calls=calls[s], device_s=times[s] * 1e-9, share=times[s] / busy_ns)
        for s in sorted(times, key=lambda s: (-times[s], s))
    ]
