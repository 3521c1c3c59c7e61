"""What a profile recorded: launches on the simulated clock with where they come from.

`read` joins the integers of csrc/runtime/recorder.cpp with names: a launch of the backward pass
belongs to the module and the line whose forward pass made its autograd node.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..chip import Chip
from ..counters import Clock, clocked, combine, derive
from ..pricing import Price, prices
from ..ranges import Range, range_of, regime_of
from .communication import Collective
from .hooks import PHASES
from .memory import Block, MemoryUse

__all__ = ["Launch", "Origins", "Recording", "read"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch. Times are simulated nanoseconds on the clock of its core.

    host_ns    the host begins to dispatch it, for `dispatch_ns`
    start_ns   the core begins it, after `idle_ns` of waiting for the host
    phase      forward, backward, optimizer or other
    module     path of the module or optimizer, "" for none
    source     "file:line function" of the user's line, "" if not recorded
    """

    op: str
    signature: str
    price: Price
    number: int  # of the price
    device: int
    stream: int
    host_ns: int
    dispatch_ns: int
    start_ns: int
    duration_ns: int
    idle_ns: int
    phase: str
    module: str
    source: str

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.duration_ns


@dataclass(frozen=True, kw_only=True)
class Recording:
    """All launches of the profiled regions, in the order the host made them.

    regions   (device, begin, end) of each region on its core's clock, in nanoseconds
    memory    by device
    left_out  launches beyond `max_launches`; then regions end with the last one recorded
    """

    chip: Chip
    lnc: int
    launches: Sequence[Launch]
    regions: Sequence[tuple[int, int, int]]
    memory: Mapping[int, MemoryUse]
    left_out: int = 0
    collectives: Sequence[Collective] = ()
    collective_times: tuple[int, int, int] = (0, 0, 0)  # how many, active and exposed nanoseconds

    @cached_property
    def devices(self) -> tuple[int, ...]:
        return tuple(sorted({launch.device for launch in self.launches}))

    @cached_property
    def elapsed_ns(self) -> int:
        """Of the regions, added up over the devices that launched something."""
        return sum(end - begin for device, begin, end in self.regions if device in self.devices)

    @cached_property
    def groups(self) -> list[tuple[str, int, Price]]:
        """(operator, launches, price), in a fixed order."""
        calls: dict[tuple[str, int], int] = {}
        found: dict[tuple[str, int], Price] = {}
        for launch in self.launches:
            key = (launch.op, launch.number)
            calls[key] = calls.get(key, 0) + 1
            found[key] = launch.price
        return [(op, calls[op, number], found[op, number]) for op, number in sorted(calls)]

    @cached_property
    def counters(self) -> dict[str, float]:
        """The counters of `torch.trn.counters()` over the launches."""
        totals = combine((price.totals, calls) for _, calls, price in self.groups)
        count, active_ns, exposed_ns = self.collective_times
        clock = Clock(
            launches=len(self.launches),
            dispatch_s=sum(x.dispatch_ns for x in self.launches) * 1e-9,
            busy_s=sum(x.duration_ns for x in self.launches) * 1e-9,
            idle_s=sum(x.idle_ns for x in self.launches) * 1e-9,
            collectives=count,
            collective_s=active_ns * 1e-9,
            exposed_s=exposed_ns * 1e-9,
        )
        return derive(totals | clocked(clock), self.chip, self.lnc)

    @cached_property
    def range(self) -> Range:
        """Where four of five measurements of such a run lie, as factors on its time."""
        whole = len(self.groups) > 1 or any(op.startswith("graph ") for op, _, _ in self.groups)
        launches = len(self.launches)
        return range_of(regime_of(self.counters, launches=launches, whole=whole))


# --- reading ------------------------------------------------------------------------------------

Row = Sequence[int]
# The columns of a launch in csrc/runtime/bind.cpp.
(_ROW, _DEVICE, _STREAM, _HOST, _DISPATCH, _START, _IDLE, _PHASE, _SCOPE, _NODE, _THREAD, _LEAF,
 _NEXT, _SITE) = range(14)  # fmt: skip


@dataclass
class Origins:
    """Which scope and which source line made an autograd node: by thread, in order of nodes."""

    scopes: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    sites: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)

    def add(self, launches: Iterable[Row], scopes: Iterable[Row]) -> None:
        """Take in what one region recorded."""
        for thread, node, scope in scopes:
            _append(self.scopes, thread, node, scope)
        for row in launches:
            if row[_NODE] < 0 and not row[_LEAF]:
                _append(self.sites, row[_THREAD], row[_NEXT], row[_SITE])

    def scope(self, row: Row) -> int:
        """The scope whose forward pass made the node of a launch, -1 for none."""
        if row[_NODE] < 0:
            return row[_SCOPE]
        nodes, scopes = self.scopes.get(row[_THREAD], ([], []))
        at = bisect_right(nodes, row[_NODE]) - 1
        return scopes[at] if at >= 0 else -1

    def site(self, row: Row) -> int:
        """The line that made the node: that of the first launch after the node had its number."""
        if row[_NODE] < 0:
            return row[_SITE]
        nodes, sites = self.sites.get(row[_THREAD], ([], []))
        at = bisect_right(nodes, row[_NODE])
        return sites[at] if at < len(sites) else row[_SITE]


def _append(log: dict[int, tuple[list[int], list[int]]], thread: int, node: int, what: int) -> None:
    nodes, values = log.setdefault(thread, ([], []))
    nodes.append(node)
    values.append(what)


def read(
    raw: tuple[Any, ...],
    origins: Origins,
    *,
    path_of: Callable[[int], str],
    owner_of: Callable[[int], str],
    source_of: Callable[[int], str],
    shapes: bool,
) -> tuple[list[Launch], list[Block]]:
    """The launches and blocks of one region, from what `_C.stop_recording()` gives.

    path_of, owner_of, source_of  names of a scope, of a leaf tensor's module, of a source line
    """
    signatures, rows, scopes, blocks, _ = raw
    origins.add(rows, scopes)
    priced = prices(number for _, _, number, _ in signatures)

    def launch(row: Row) -> Launch | None:
        op, signature, number, duration_ns = signatures[row[_ROW]]
        price = priced[row[_ROW]]
        if price is None:  # the pricer itself failed and said so; such launches take no time
            return None
        return Launch(
            op=op,
            signature=signature if shapes else "",
            price=price,
            number=number,
            device=row[_DEVICE],
            stream=row[_STREAM],
            host_ns=row[_HOST],
            dispatch_ns=row[_DISPATCH],
            start_ns=row[_START],
            duration_ns=duration_ns,
            idle_ns=row[_IDLE],
            phase=PHASES[row[_PHASE]],
            module=owner_of(row[_LEAF]) if row[_LEAF] else path_of(origins.scope(row)),
            source=source_of(origins.site(row)),
        )

    made = [found for row in rows if (found := launch(row)) is not None]
    return made, [Block(*block) for block in blocks]
