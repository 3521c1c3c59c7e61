"""A recording as a Chrome trace, which Perfetto shows: a process for each core, lanes in it.

Launches, dispatches and memory come from the recording. The lanes of the engines come from
scheduling the programs of each price once more, with a timeline; every launch of a price shows it.
Times are simulated; a trace counts in microseconds.
"""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from ..chip import Chip
from ..isa import Engine
from ..pricing import spans_of
from ..ranges import said
from ..timing import Span
from .communication import lanes_of
from .hooks import CATEGORIES
from .recording import Launch, Recording

__all__ = ["DETAIL", "Slice", "events", "merged", "slices_of", "write"]

Event = dict[str, Any]
DETAIL = 64  # spans of a lane in one launch, at most twice as many
_EVENTS_OF_A_LAUNCH = 6  # without its engines: two slices, two arrow ends, memory, module

_HOST_LANE, _MODULE_LANE, _LAUNCH_LANE, _FIRST_ENGINE_LANE = 1, 2, 3, 10
_COLLECTIVE_LANE = 2000
_NAMES = {_HOST_LANE: "host dispatch", _MODULE_LANE: "module", _LAUNCH_LANE: "launches"}
_ENGINES = [e.value for e in Engine if e is not Engine.DMA]


def write(recording: Recording, path: Path, max_events: int, skip_launches: int) -> None:
    """Write the trace as JSON, compressed if the name ends in ".gz"."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    shown = _Shown(recording, max_events, skip_launches)
    head = {
        "displayTimeUnit": "ns",
        "otherData": {
            "about": "simulated time of torch_trn_emu",
            "chip": recording.chip.name,
            "range": said(recording.range, recording.chip),
            "shown": shown.note,
        },
    }
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "traceEvents": [\n')
        file.writelines(_separated(_events(shown)))
        file.write("\n]}\n")


def events(recording: Recording, max_events: int = 300_000, skip_launches: int = 0) -> list[Event]:
    """The events of the trace."""
    return list(_events(_Shown(recording, max_events, skip_launches)))


def _separated(found: Iterable[Event]) -> Iterator[str]:
    for k, event in enumerate(found):
        yield (",\n" if k else "") + json.dumps(event, separators=(",", ":"))


def _events(shown: "_Shown") -> Iterator[Event]:
    for device in shown.recording.devices:
        yield from _collectives(device, shown)
        mine = [(k, x) for k, x in shown.launches if x.device == device]
        yield from _names(device, shown)
        yield from _module_lane(device, [launch for _, launch in mine])
        for number, launch in mine:
            yield from _launch(number, launch)
            yield from shown.engines(number, launch)
        yield from _memory(device, shown)


def _us(ns: float) -> float:
    return round(ns / 1e3, 6)


def _slice(
    name: str, device: int, lane: int, start_ns: float, end_ns: float, arguments: Event
) -> Event:
    return {
        "ph": "X",
        "name": name,
        "pid": device,
        "tid": lane,
        "ts": _us(start_ns),
        "dur": _us(end_ns - start_ns),
        "args": arguments,
    }


def _flow(phase: str, number: int, device: int, lane: int, ns: float) -> Event:
    """An arrow: "s" starts it, "t" goes on, "f" ends it. It binds to the slice around its time."""
    return {
        "ph": phase,
        "bp": "e",
        "cat": "launch",
        "name": "launch",
        "id": number,
        "pid": device,
        "tid": lane,
        "ts": _us(ns),
    }


def _metadata(kind: str, device: int, lane: int, arguments: Event) -> Event:
    return {"ph": "M", "name": kind, "pid": device, "tid": lane, "args": arguments}


def _names(device: int, shown: "_Shown") -> Iterator[Event]:
    recording = shown.recording
    yield _metadata("process_name", device, 0, {"name": f"trn:{device} ({recording.chip.name})"})
    same = f"each of {recording.lnc} physical cores runs what the engine lanes show"
    yield _metadata("process_labels", device, 0, {"labels": f"{same}; {shown.note}"})
    streams = {x.stream for _, x in shown.launches if x.device == device}
    named = {**_NAMES, **{_stream_lane(s): f"launches, stream {s}" for s in streams if s}}
    named |= {lane: queue for queue, lane in shown.lanes.items()}
    for lane, name in named.items():
        yield _metadata("thread_name", device, lane, {"name": name})
        yield _metadata("thread_sort_index", device, lane, {"sort_index": lane})


def _stream_lane(stream: int) -> int:
    return _LAUNCH_LANE if stream == 0 else 1000 + stream


def _launch(number: int, x: Launch) -> Iterator[Event]:
    arguments = {
        "signature": x.signature,
        "module": x.module,
        "phase": x.phase,
        "source": x.source,
        "engine": x.price.engine,
        "status": x.price.status,
    }
    known = {name: value for name, value in arguments.items() if value}
    dispatched_ns = x.host_ns + x.dispatch_ns
    yield _slice(x.op, x.device, _HOST_LANE, x.host_ns, dispatched_ns, known)
    yield _flow("s", number, x.device, _HOST_LANE, x.host_ns)
    lane = _stream_lane(x.stream)
    yield _slice(x.op, x.device, lane, x.start_ns, x.end_ns, known | {"idle_ns": x.idle_ns})
    yield _flow("t", number, x.device, lane, x.start_ns)


def _collectives(device: int, shown: "_Shown") -> Iterator[Event]:
    """A lane for each group; what began before the launches shown is left out."""
    first = next((x.host_ns for _, x in shown.launches), 0)
    found = [c for c in shown.recording.collectives if c.device == device and c.end_ns >= first]
    for k, (name, calls) in enumerate(lanes_of(found).items()):
        lane = _COLLECTIVE_LANE + k
        yield _metadata("thread_name", device, lane, {"name": name})
        yield _metadata("thread_sort_index", device, lane, {"sort_index": lane})
        for c in calls:
            arguments = {
                "bytes": c.bytes,
                "ranks": c.ranks,
                "algorithm": c.algorithm,
                "level": c.level,
                "number": c.number,
                "arrivals_ns": list(c.arrivals_ns),
                "exposed_ns": c.exposed_ns,
            }
            yield _slice(c.operation, device, lane, c.start_ns, c.end_ns, arguments)


def _module_lane(device: int, launches: Sequence[Launch]) -> Iterator[Event]:
    """Neighbouring launches of one module as one slice, while the host dispatches them."""
    for (module, phase), group in groupby(launches, key=lambda x: (x.module, x.phase)):
        run = list(group)
        if module:
            end_ns = run[-1].host_ns + run[-1].dispatch_ns
            name = f"{module} ({phase})"
            count = {"launches": len(run)}
            yield _slice(name, device, _MODULE_LANE, run[0].host_ns, end_ns, count)


def _memory(device: int, shown: "_Shown") -> Iterator[Event]:
    use = shown.recording.memory.get(device)
    begin, end = shown.begin, shown.end
    for before, nbytes in use.samples if use else ():
        if begin <= before <= end:
            at = shown.recording.launches[min(before, end - 1)].host_ns
            values = dict(zip(CATEGORIES, nbytes, strict=True))
            yield {"ph": "C", "name": "HBM (bytes)", "pid": device, "ts": _us(at), "args": values}


# --- engine lanes ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slice:
    lane: str
    name: str
    start_ns: float
    end_ns: float
    count: int
    busy_ns: float
    nbytes: int


class _Shown:
    """What the trace shows: which launches, and their engines as fine as `max_events` allows."""

    def __init__(self, recording: Recording, max_events: int, skip_launches: int) -> None:
        self.recording = recording
        count = len(recording.launches)
        self.begin = min(skip_launches, count)
        self.end = min(count, self.begin + max(1, max_events // (2 * _EVENTS_OF_A_LAUNCH)))
        self.limit = DETAIL
        calls = Counter(launch.number for _, launch in self.launches)
        self.slices = {
            number: slices_of(number, self.recording.chip, self.limit) for number in calls
        }
        room = max_events - _EVENTS_OF_A_LAUNCH * (self.end - self.begin)
        while self.limit > 1 and self._total(calls) > room:
            self.limit //= 2
            self.slices = {number: merged(s, self.limit) for number, s in self.slices.items()}
        self.detailed = self._launches_within(room)

    @property
    def launches(self) -> Iterator[tuple[int, Launch]]:
        """The launches shown, with their numbers."""
        return ((k, self.recording.launches[k]) for k in range(self.begin, self.end))

    def _total(self, calls: Mapping[int, int]) -> int:
        return sum(times * len(self.slices[number]) for number, times in calls.items())

    def _launches_within(self, room: int) -> int:
        """The end of the launches whose engine lanes fit."""
        for k, launch in self.launches:
            room -= len(self.slices[launch.number])
            if room < 0:
                return k
        return self.end

    @cached_property
    def lanes(self) -> dict[str, int]:
        """Engines first, then DMA queues by name."""
        used = {s.lane for found in self.slices.values() for s in found}
        engines = [name for name in _ENGINES if name in used]
        ordered = engines + sorted(used - set(engines))
        return {name: _FIRST_ENGINE_LANE + k for k, name in enumerate(ordered)}

    @cached_property
    def note(self) -> str:
        """What the trace merges and leaves out, for its reader."""
        merged = sum(s.count > 1 for found in self.slices.values() for s in found)
        text = (
            f"instructions are merged to at most {2 * self.limit} spans a lane and launch "
            f"({merged} kinds of spans stand for several; 'executions' counts them)"
            if merged
            else "every instruction has a span"
        )
        if self.detailed < self.end:
            text += f"; only launches {self.begin} to {self.detailed} show their engines"
        if self.end - self.begin < len(self.recording.launches):
            text += f"; launches {self.begin} to {self.end} of {len(self.recording.launches)}"
        return text

    def engines(self, number: int, launch: Launch) -> Iterator[Event]:
        """The engine lanes of one launch, and the end of its arrow."""
        if number >= self.detailed:
            return
        first = min(self.slices[launch.number], key=lambda s: s.start_ns, default=None)
        for s in self.slices[launch.number]:
            start_ns, end_ns = launch.start_ns + s.start_ns, launch.start_ns + s.end_ns
            arguments: Event = {"op": launch.op, "executions": s.count, "bytes": s.nbytes}
            if s.count > 1:
                arguments |= {"merged": True, "busy_ns": round(s.busy_ns, 3)}
            lane = self.lanes[s.lane]
            yield _slice(s.name, launch.device, lane, start_ns, end_ns, arguments)
            if s is first:
                yield _flow("f", number, launch.device, lane, start_ns)


def slices_of(number: int, chip: Chip, limit: int) -> list[Slice]:
    """The engine lanes of a price's programs, from the beginning of its launch."""
    out: list[Slice] = []
    start_ns = chip.launch.kernel_overhead_s * 1e9  # shown before the first instruction
    for found in spans_of(number, chip, limit):
        for lane, spans in found.items():
            out += _in_order(lane, spans, start_ns)
        ends = (span.end_s for spans in found.values() for span in spans)
        start_ns += max(ends, default=0.0) * 1e9
    return out


def _in_order(lane: str, spans: Sequence[Span], offset_ns: float) -> Iterator[Slice]:
    """Slices of one lane. Transfers of a queue overlap; each is shown from the end of the last."""
    shown_until = 0.0
    for span in spans:
        start_s, end_s = max(span.start_s, shown_until), max(span.end_s, shown_until)
        shown_until = end_s
        written = sum(a.nbytes for a in span.instruction.writes)
        yield Slice(
            lane=lane,
            name=span.instruction.opcode + ("" if span.alike else " and others"),
            start_ns=offset_ns + start_s * 1e9,
            end_ns=offset_ns + end_s * 1e9,
            count=span.count,
            busy_ns=span.busy_s * 1e9,
            nbytes=written,
        )


def merged(slices: Sequence[Slice], limit: int) -> list[Slice]:
    """At most twice `limit` slices a lane: neighbours are merged in pairs until they fit."""
    out: list[Slice] = []
    for _, group in groupby(slices, key=lambda s: s.lane):
        run = list(group)
        while len(run) > 2 * limit:
            pairs = [run[k : k + 2] for k in range(0, len(run), 2)]
            run = [_join(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        out += run
    return out


def _join(a: Slice, b: Slice) -> Slice:
    one = a.name == b.name and not a.name.endswith(" and others")
    first = a.name.removesuffix(" and others")
    return Slice(
        a.lane,
        first if one else f"{first} and others",
        a.start_ns,
        b.end_ns,
        a.count + b.count,
        a.busy_ns + b.busy_ns,
        a.nbytes,
    )
