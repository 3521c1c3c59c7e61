"""Where one training step ends and the next begins: behind the launches of an optimizer's step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from .recording import Launch, Recording

__all__ = ["WHOLE", "Step", "settled", "settled_s", "steps"]

WHOLE = "the whole run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step on the clock of its core, in nanoseconds; `launches` of it."""

    begin_ns: int
    end_ns: int
    launches: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) * 1e-9


def steps(recording: Recording, device: int | None = None) -> list[Step]:
    """The steps of a device, the first one by default; empty where no optimizer ran."""
    device = min(recording.devices, default=0) if device is None else device
    begin_ns = min((r[1] for r in recording.regions if r[0] == device), default=0)
    found: list[Step] = []
    end_ns, launches, stepping = begin_ns, 0, False
    for launch in recording.launches:
        if launch.device != device:
            continue
        if stepping and launch.phase != "optimizer":
            found.append(Step(begin_ns=begin_ns, end_ns=end_ns, launches=launches))
            begin_ns, launches = end_ns, 0
        stepping = launch.phase == "optimizer"
        end_ns, launches = max(end_ns, launch.end_ns), launches + 1
    if stepping:
        found.append(Step(begin_ns=begin_ns, end_ns=end_ns, launches=launches))
    return found


def _second_half(found: Sequence[Step]) -> Sequence[Step]:
    """The steps that have settled: the first ones allocate and read more."""
    return found[len(found) // 2 :]


def settled_s(found: Sequence[Step]) -> float:
    """The median of the steps that have settled."""
    return median(step.seconds for step in _second_half(found)) if found else 0.0


def settled(recording: Recording) -> tuple[Recording, str]:
    """The steps that have settled as a recording, and which they are.

    The whole recording where a device has no two steps. What ran before the first of them and after
    the last is left out: loading, warming up, evaluating, sampling. So is memory.
    """
    found = {device: steps(recording, device) for device in recording.devices}
    if min(map(len, found.values()), default=0) < 2:
        return recording, WHOLE
    spans = {
        device: (device, _second_half(every)[0].begin_ns, every[-1].end_ns)
        for device, every in found.items()
    }
    calls = [c for c in recording.collectives if _lies_in(c.device, c.start_ns, spans)]
    kept = replace(
        recording,
        launches=_launches_of(recording, found),
        regions=list(spans.values()),
        memory={},
        left_out=0,
        collectives=calls,
        collective_times=(
            len(calls),
            sum(c.duration_ns for c in calls),
            sum(c.exposed_ns for c in calls),
        ),
    )
    count = len(found[recording.devices[0]])
    return kept, f"steps {count // 2 + 1} to {count} of {count}"


def _launches_of(recording: Recording, found: Mapping[int, Sequence[Step]]) -> list[Launch]:
    """The launches of the settled steps, by their numbers on each device."""
    left = {d: sum(s.launches for s in every) for d, every in found.items()}
    wanted = {d: sum(s.launches for s in _second_half(every)) for d, every in found.items()}
    out = []
    for launch in recording.launches:
        if 0 < left[launch.device] <= wanted[launch.device]:
            out.append(launch)
        left[launch.device] -= 1
    return out


def _lies_in(device: int, ns: int, spans: Mapping[int, tuple[int, int, int]]) -> bool:
    return device in spans and spans[device][1] <= ns < spans[device][2]
