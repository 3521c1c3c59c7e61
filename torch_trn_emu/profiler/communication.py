"""The collectives of a recording: each call, and a table by operation, group and size.

The columns are those of the vendor's CcOp table. To hide what is exposed, see HIDING.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..collectives import bus_factor, priced
from ..ranges import range_of, regime_of_collective

if TYPE_CHECKING:
    from .recording import Recording

__all__ = ["Collective", "CollectiveRow", "collective_rows", "cure", "lanes_of", "read_collectives"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective or message. Times are simulated nanoseconds, the same clock on all ranks.

    arrivals_ns  of the ranks, in their order: both ends of a message, the receiver first
    arrival_ns   of this rank
    exposed_ns   something waited for the end, and the core had nothing else to do
    """

    operation: str
    group: str
    number: int  # of the group's calls
    ranks: int
    dtype: str
    elements: int
    bytes: int  # the full buffer
    algorithm: str
    level: str
    bandwidth_bound: bool
    device: int
    arrivals_ns: tuple[int, ...]
    arrival_ns: int
    start_ns: int
    end_ns: int
    exposed_ns: int

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns

    @property
    def late_ns(self) -> int:
        """What this rank waited for others, or for the collective before it."""
        return max(0, self.start_ns - self.arrival_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRow:
    """Calls that differ in nothing but time; seconds are sums over them."""

    operation: str
    group: str
    ranks: int
    algorithm: str
    level: str
    dtype: str
    elements: int
    bytes: int
    calls: int
    duration_s: float
    exposed_s: float
    late_s: float
    algorithm_bandwidth: float  # bytes/s
    bus_bandwidth: float
    range_low: float  # factors on the duration: four of five measurements lie between
    range_high: float


def read_collectives(device: int, raw: Iterable[Sequence[Any]]) -> Iterator[Collective]:
    """What `_C.stop_collective_log` gives of a core."""
    for row, group, number, what, arrivals, arrival, start, end, exposed in raw:
        about = priced(row)
        operand = re.search(r"(\w+)\[(\d+)\]", what)
        yield Collective(
            operation=what.split()[0],
            group=group,
            number=number,
            ranks=about.ranks or len(arrivals),
            dtype=operand[1] if operand else "",
            elements=int(operand[2]) if operand else 0,
            bytes=about.bytes,
            algorithm=about.algorithm,
            level=about.level,
            bandwidth_bound=about.bandwidth_bound,
            device=device,
            arrivals_ns=tuple(arrivals),
            arrival_ns=arrival,
            start_ns=start,
            end_ns=end,
            exposed_ns=exposed,
        )


def collective_rows(recording: "Recording") -> list[CollectiveRow]:
    """A row for each kind of call, the most exposed first."""
    kinds: dict[tuple[Any, ...], list[Collective]] = {}
    for c in recording.collectives:
        key = (c.operation, c.group, c.ranks, c.algorithm, c.level, c.dtype, c.elements, c.bytes)
        kinds.setdefault(key, []).append(c)
    rows = [_row(calls) for calls in kinds.values()]
    return sorted(rows, key=lambda r: (-r.exposed_s, -r.duration_s, r.operation, r.bytes, r.group))


def _row(calls: Sequence[Collective]) -> CollectiveRow:
    c, duration_ns = calls[0], sum(x.duration_ns for x in calls)
    bandwidth = c.bytes * len(calls) / (duration_ns / 1e9) if duration_ns else 0.0
    found = range_of(regime_of_collective(c.bytes))
    return CollectiveRow(
        operation=c.operation,
        group=c.group,
        ranks=c.ranks,
        algorithm=c.algorithm,
        level=c.level,
        dtype=c.dtype,
        elements=c.elements,
        bytes=c.bytes,
        calls=len(calls),
        duration_s=duration_ns / 1e9,
        exposed_s=sum(x.exposed_ns for x in calls) / 1e9,
        late_s=sum(x.late_ns for x in calls) / 1e9,
        algorithm_bandwidth=bandwidth,
        bus_bandwidth=bandwidth * bus_factor(c.operation, c.ranks),
        range_low=found.low,
        range_high=found.high,
    )


def lanes_of(collectives: Iterable[Collective]) -> dict[str, list[Collective]]:
    """By lane of a timeline: one for each group, and more where messages overlap."""
    lanes: dict[str, list[Collective]] = {}
    for c in sorted(collectives, key=lambda x: (x.start_ns, x.group, x.number)):
        name, again = f"collectives, {c.group}", 1
        while name in lanes and lanes[name][-1].end_ns > c.start_ns:
            again += 1
            name = f"collectives, {c.group} ({again})"
        lanes.setdefault(name, []).append(c)
    return lanes


# By the beginning of an operation's name: what overlaps it with computation.
HIDING = (
    ("all_gather", "Gather the next layer's parameters while this one computes: "
     "set_modules_to_forward_prefetch and set_modules_to_backward_prefetch of FSDP2, "
     "backward_prefetch and forward_prefetch of FSDP1; reshard_after_forward=False gathers once."),
    ("reduce_scatter", "Reduce a layer's gradients while the layer below computes its own: wrap "
     "each block in fully_shard, not the model alone."),
    ("all_reduce", "Start it with async_op=True and wait for it where the result is needed; "
     "DistributedDataParallel does so for each bucket, and a smaller bucket_cap_mb starts sooner."),
    ("all_to_all", "Split the tokens in two halves, so that one is sent while the other computes."),
    ("send", "More microbatches, or an interleaved schedule, keep pipeline stages busy."),
    ("recv", "More microbatches, or an interleaved schedule, keep pipeline stages busy."),
    ("barrier", "Leave out barriers: collectives wait for all ranks anyway."),
    ("", "Start it with async_op=True and wait for it where the result is needed."),
)  # fmt: skip
_FEWER = (
    "Most of its time is the start of each call: fewer and larger ones (a larger bucket_cap_mb, "
    "more layers in one fully_shard, flattened tensors) pay for it less often."
)


def cure(collectives: Sequence[Collective]) -> str:
    """What would hide the most exposed operation."""
    by: dict[str, int] = {}
    for c in collectives:
        by[c.operation] = by.get(c.operation, 0) + c.exposed_ns
    worst = max(by, key=lambda name: (by[name], name))
    text = next(text for name, text in HIDING if worst.startswith(name))
    exposed = [c for c in collectives if c.operation == worst]
    bound = sum(c.exposed_ns for c in exposed if c.bandwidth_bound)
    return text if 2 * bound > by[worst] else f"{text} {_FEWER}"
