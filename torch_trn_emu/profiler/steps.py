"""Where one training step ends and the next begins: behind the launches of an optimizer's step."""

from dataclasses import dataclass
from statistics import median

from .recording import Recording

__all__ = ["Step", "settled_s", "steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step on the clock of its core, in nanoseconds; `launches` of it."""

    begin_ns: int
    end_ns: int
    launches: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) * 1e-9


def steps(recording: Recording) -> list[Step]:
    """The steps of the first device; empty where no optimizer ran."""
    device = min(recording.devices, default=0)
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


def settled_s(found: list[Step]) -> float:
    """The median of the second half: the first steps allocate and read more."""
    return median(step.seconds for step in found[len(found) // 2 :]) if found else 0.0
