"""The engine program of one graph: regions, windows, price, and what fusion saved.

A graph is one launch. Its programs run as one schedule, but where the host takes part; what a
program's start costs is paid once. `GraphPrice` can be pickled: it travels with the host code
through torch's caches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from .. import pricing
from ..calls import Call, Target, TensorArg
from ..chip import Chip
from ..counters import combine
from ..errors import EmulatorBug
from ..isa import Program, itemsize
from ..pricing import Price, price_call
from ..settings import settings
from ..timing import Span
from .programs import Lowered
from .region import Region
from .residence import staying
from .schedules import Schedules
from .windows import Scheduled, Window, schedule_window, windows

__all__ = [
    "GraphPrice",
    "RegionRow",
    "Saving",
    "Work",
    "price_graph",
    "target_of_process",
    "windows_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRow:
    """One region: its operators, its kind, and where its nodes come from in the user's source.

    start_s  its first instruction, from the start of the graph's program
    end_s    its last instruction is done
    added_s  the time in which it was the first region that was not done: its share of the critical
             path. Those of all regions add up to the graph's time, less what a start costs
    """

    name: str
    kind: str
    operators: tuple[str, ...]
    modules: tuple[str, ...]
    sources: tuple[str, ...]
    read_bytes: int
    written_bytes: int
    start_s: float = 0.0
    end_s: float = 0.0
    added_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A graph against its own operators launched one by one.

    Times are simulated seconds of the core and of the host's launches.
    """

    launches: tuple[int, int]  # (one by one, compiled)
    hbm_bytes: tuple[float, float]
    device_s: tuple[float, float]
    launch_s: tuple[float, float]


@dataclass(slots=True, kw_only=True)
class GraphPrice:
    """What one launch of a graph costs: as `pricing.Price` for an operator.

    schedules  its windows, for the engine lanes of a trace
    continues  the program of the launch before goes on, after a collective
    """

    name: str
    price: Price
    regions: tuple[RegionRow, ...]
    windows: int
    spilled_bytes: int
    calls: tuple[Call, ...] = field(repr=False)
    schedules: Schedules = field(default_factory=Schedules, repr=False, compare=False)
    continues: bool = False

    @property
    def launches(self) -> int:
        """How often the host dispatches it."""
        return 0 if self.continues else 1

    def programs(self, chip: Chip) -> tuple[Program, ...]:
        """What was scheduled, in order."""
        return tuple(one.program(chip) for one in self.schedules)

    def lanes(self, chip: Chip, limit: int) -> list[dict[str, tuple[Span, ...]]]:
        """The engine lanes of each window, in order."""
        return [one.lanes(chip, limit) for one in self.schedules]

    def __reduce__(self) -> tuple[Any, ...]:  # the counters of a Price do not pickle as they are
        price = _fields_of(self.price) | {"totals": dict(self.price.totals)}
        return _restored, (_fields_of(self) | {"price": price},)

    def saving(self, target: Target) -> Saving:
        """What one launch of all operators saves, by the prices of eager launches."""
        prices = [p for call in self.calls if not (p := price_call(call, target)).free]
        alone = combine((p.totals, 1) for p in prices)
        launch = target.chip.launch

        def moved(totals: Mapping[str, float]) -> float:
            return totals["hbm_read_bytes"] + totals["hbm_write_bytes"]

        return Saving(
            launches=(len(prices), self.launches),
            hbm_bytes=(moved(alone), moved(self.price.totals)),
            device_s=(sum(p.seconds for p in prices), self.price.seconds),
            launch_s=(
                len(prices) * launch.eager_dispatch_s,
                self.launches * launch.graph_launch_s,
            ),
        )


def _fields_of(value: GraphPrice | Price) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _restored(values: dict[str, Any]) -> GraphPrice:
    price = values["price"]
    price |= {"totals": MappingProxyType(price["totals"])}
    return GraphPrice(**values | {"price": Price(**price)})


@dataclass(slots=True)
class Work:
    """A graph, or a piece of one, cut and lowered before it is priced; `calls` are all it makes."""

    regions: list[Region]
    parts: list[Lowered]
    calls: list[Call]


def windows_of(work: Work, target: Target) -> list[Window]:
    """The windows, with the tensors that stay on chip."""
    cut = windows(work.parts)
    chip, regions = target.chip, work.regions
    return [w if w.priced else Window(staying(w.parts, regions, chip)) for w in cut]


def target_of_process() -> Target:
    chosen = settings()
    return Target(chosen.chip, chosen.lnc)


# A flag on its way to the host, which waits for it.
_FLAG = Call("aten::_local_scalar_dense", (TensorArg("bool", (), ()),), (None,))


def price_graph(name: str, work: Work, target: Target, *, reads_flag: bool = False) -> GraphPrice:
    """Schedule the graph's windows; at the end the host may read a flag."""
    cut = windows_of(work, target)
    scheduled = [schedule_window(window, target) for window in cut]
    prices = [s.price for s in scheduled] + [price_call(_FLAG, target)] * reads_flag
    times = _times(cut, scheduled, target)
    regions = tuple(_row(r, times.get(r.number, (0.0, 0.0, 0.0))) for r in work.regions)
    return GraphPrice(
        name=name,
        price=_joined(name, prices, _parts(regions), target),
        regions=regions,
        windows=len(cut),
        schedules=Schedules(tuple(window.schedule() for window in cut if not window.priced)),
        spilled_bytes=sum(_left(r) for r in work.regions if r.full),
        calls=tuple(work.calls),
    )


_Times = tuple[float, float, float]  # first start, last end, share of the critical path


def _times(cut: list[Window], scheduled: list[Scheduled], target: Target) -> dict[int, _Times]:
    """When each region ran, by its number."""
    found: dict[int, _Times] = {}
    begin_s = 0.0
    for window, s in zip(cut, scheduled, strict=True):
        for part, t in zip(window.parts, s.parts, strict=True):
            start_s, end_s, added_s = found.get(part.region, (math.inf, 0.0, 0.0))
            found[part.region] = (
                min(start_s, begin_s + t.start_s),
                max(end_s, begin_s + t.end_s),
                added_s + t.added_s,
            )
        begin_s += sum(t.added_s for t in s.parts)
    return found


_Parts = tuple[tuple[str, float], ...]


def _joined(name: str, prices: list[Price], parts: _Parts, target: Target) -> Price:
    totals = combine((p.totals, 1) for p in prices)
    overhead = target.chip.launch.kernel_overhead_s
    programs = sum(p.totals["event_count"] > 0 for p in prices)
    totals["total_time"] -= max(0, programs - 1) * overhead
    if totals["total_time"] < 0:
        raise EmulatorBug(f"{name}: its programs take less than their starts")
    odd = sorted({p.note for p in prices if p.status == pricing.NOT_MODELLED})
    engines: dict[str, float] = {}
    for p in prices:
        engines[p.engine] = engines.get(p.engine, 0.0) + p.seconds
    return Price(
        op=name,
        row="graph",
        engine=max(engines, key=lambda e: engines[e]) if engines else "none",
        status="inferred",
        seconds=totals["total_time"],
        totals=MappingProxyType(totals),
        blocks=any(p.blocks for p in prices),
        note="; ".join(["one program of regions", *odd]),
        narrowed=tuple(sorted({n for p in prices for n in p.narrowed})),
        parts=parts,
    )


def _parts(regions: Sequence[RegionRow]) -> _Parts:
    """What reports say of each region that takes time: its modules and operators."""
    return tuple(
        (f"{', '.join(r.modules)}: {r.name}" if r.modules else r.name, r.added_s)
        for r in regions
        if r.added_s
    )


def _left(region: Region) -> int:
    return sum(int(v.elements * itemsize(v.dtype)) for v in region.outputs.values())


def _row(region: Region, times: _Times) -> RegionRow:
    return RegionRow(
        name=region.name,
        kind=region.kind,
        operators=tuple(call.op for call in region.calls),
        modules=_distinct(_module(n) for n in region.nodes),
        sources=_distinct(_source(n) for n in region.nodes),
        read_bytes=sum(int(v.elements * itemsize(v.dtype)) for v in region.inputs.values()),
        written_bytes=_left(region),
        start_s=times[0],
        end_s=times[1],
        added_s=times[2],
    )


def _distinct(values: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(v for v in values if v))  # type: ignore[attr-defined]


def _module(node: object) -> str:
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")  # type: ignore[attr-defined]
    return next(reversed(stack.values()))[0] if stack else ""


def _source(node: object) -> str:
    """The last line of the stack trace that leads to the user's code."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()  # type: ignore[attr-defined]
    places = [line.strip() for line in lines if line.strip().startswith("File ")]
    return places[-1] if places else ""
