"""What the timeline of the page draws, as compact data: launches by kind, engine lanes by price.

A kind is what launches share: operator, shapes, price, module, phase, line. Launches are then three
numbers each, and the engines of a price are listed once; the page repeats them for each launch.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from typing import Any

from ..isa import Engine
from .communication import Collective, lanes_of
from .recording import Launch, Recording
from .steps import steps
from .summary import gib, seconds
from .trace import DETAIL, merged, slices_of

__all__ = ["canonical", "packed", "shapes", "timeline"]

MOST_LAUNCHES = 150_000  # the last ones, of a loop that has settled
MOST_SLICES = 40_000  # kinds of spans in the engine lanes, all prices together


def canonical(op: str) -> str:
    """The name of an operator without what is the host kernel's: "_for_cpu"."""
    return op.replace("_for_cpu", "")


def shapes(signature: str, most: int = 200) -> str:
    """A signature for people: a list of hundreds of tensors is cut."""
    return signature if len(signature) <= most else signature[:most].rstrip(", ") + ", ..."


def packed(data: dict[str, Any]) -> str:
    """JSON, compressed by zlib, as base64."""
    plain = json.dumps(data, separators=(",", ":")).encode()
    return base64.b64encode(zlib.compress(plain, 9)).decode()


def timeline(recording: Recording) -> dict[str, Any]:
    """Times are nanoseconds from the first launch that is shown; launches hold differences."""
    shown = recording.launches[-MOST_LAUNCHES:]
    words, kinds = _Numbers(), _Numbers()
    lanes, prices = _engines(recording, shown, words)
    begin_ns = min((min(x.host_ns, x.start_ns) for x in shown), default=0)
    devices = {}
    for device in sorted({x.device for x in shown}):
        own = [x for x in shown if x.device == device]
        devices[device] = {
            "kind": [kinds[_kind(x, words)] for x in own],
            "host": list(_differences((x.host_ns for x in own), begin_ns)),
            "start": list(_differences((x.start_ns for x in own), begin_ns)),
            "collectives": _collectives(recording, device, begin_ns, words),
        }
    found = [s for s in steps(recording) if s.end_ns >= begin_ns]
    return {
        "words": words.listed,
        "kinds": kinds.listed,
        "lanes": lanes,
        "prices": prices,
        "devices": devices,
        "steps": [[s.begin_ns - begin_ns, s.end_ns - begin_ns, s.launches] for s in found],
        "leftOut": len(recording.launches) - len(shown),
    }


def _collectives(
    recording: Recording, device: int, begin_ns: int, words: "_Numbers"
) -> dict[str, list[list[int]]]:
    """By lane: begin, end, and two words, of what is shown in the span and beside it."""
    own = [c for c in recording.collectives if c.device == device and c.start_ns >= begin_ns]
    return {
        name: [
            [c.start_ns - begin_ns, c.end_ns - begin_ns, words[c.operation], words[_about(c)]]
            for c in calls
        ]
        for name, calls in lanes_of(own).items()
    }


def _about(c: Collective) -> str:
    return (
        f"{c.dtype}[{c.elements:,}], {gib(c.bytes)} among {c.ranks} ranks: {c.algorithm}, {c.level}"
        f"\n{seconds(c.duration_ns / 1e9)}, of which {seconds(c.exposed_ns / 1e9)} exposed; this "
        f"rank waited {seconds(c.late_ns / 1e9)} for the start"
    )


class _Numbers(dict[Any, int]):
    """Gives each thing a number, in the order of first use."""

    def __missing__(self, thing: Any) -> int:
        self[thing] = number = len(self)
        return number

    @property
    def listed(self) -> list[Any]:
        return list(self)


def _kind(x: Launch, words: _Numbers) -> tuple[int, ...]:
    """As timeline.js reads it."""
    engine = x.price.engine or "host"
    texts = (
        canonical(x.op),
        shapes(x.signature),
        x.module,
        x.phase,
        x.source,
        engine,
        x.price.status,
    )
    return (x.number, x.duration_ns, x.dispatch_ns, *(words[text] for text in texts))


def _differences(values: Iterable[int], before: int) -> Iterable[int]:
    for value in values:
        yield value - before
        before = value


def _engines(
    recording: Recording, shown: Iterable[Launch], words: _Numbers
) -> tuple[list[str], dict[int, list[int]]]:
    """Names of the lanes; by price: lane, word, start, duration, executions and bytes, in a row."""
    limit = DETAIL
    found = {n: slices_of(n, recording.chip, limit) for n in sorted({x.number for x in shown})}
    while limit > 1 and sum(map(len, found.values())) > MOST_SLICES:
        limit //= 2
        found = {number: merged(slices, limit) for number, slices in found.items()}
    used = {s.lane for slices in found.values() for s in slices}
    engines = [e.value for e in Engine if e.value in used and e is not Engine.DMA]
    names = engines + sorted(used - set(engines))
    lane_of = {name: i for i, name in enumerate(names)}
    flat = {
        number: [
            part
            for s in slices
            for part in (lane_of[s.lane], words[s.name], round(s.start_ns),
                         max(1, round(s.end_ns - s.start_ns)), s.count, s.nbytes)
        ]
        for number, slices in found.items()
    }  # fmt: skip
    return names, flat
