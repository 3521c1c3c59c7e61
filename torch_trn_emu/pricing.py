"""What one operator call costs: its row of OPS or its class, lowered, scheduled, and folded.

Prices are cached by call and target, the last MOST_PRICED of them; `record` numbers them for the
runtime's ledger and keeps less than 2 KB for each signature. Nothing here reads a clock: equal
calls have equal prices, and what the cache has dropped is priced again, equal.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import fsum
from sys import intern
from threading import Lock
from types import MappingProxyType

from .advice import advice
from .calls import DTYPES, Call, Target, read_call
from .chip import Chip
from .counters import COUNTERS, combine, fold
from .isa import Engine, Program, fits, itemsize
from .ops import OPS, HostTransfer, Op
from .ops.classes import class_of
from .ranges import range_of, regime_of
from .timing import Run, Span, lanes, price
from .timing.graph import GraphRun

__all__ = [
    "NOT_MODELLED",
    "OpRow",
    "Price",
    "combined",
    "host_seconds",
    "not_modelled",
    "price_call",
    "price_run",
    "prices",
    "programs",
    "record",
    "remember",
    "report_rows",
    "scaled",
    "spans_of",
]

NOT_MODELLED = "not modelled"
HOST_LINK_BYTES_PER_S = 16e9  # [D] the memory hierarchy figure of the trn1 guide; others: inferred


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One launch of a call on a logical core.

    seconds  of the core
    engine   that the row names, or the one that was busiest
    status   modelled, inferred, free or not modelled
    blocks   the host waits for the result
    totals   the folded counters (empty for free operators)
    parts    of a compiled graph: its regions, and their seconds of the critical path
    """

    op: str
    row: str
    engine: str
    status: str
    seconds: float
    totals: Mapping[str, float]
    blocks: bool = False
    note: str = ""
    narrowed: tuple[str, ...] = ()
    parts: tuple[tuple[str, float], ...] = ()

    @property
    def free(self) -> bool:
        return self.status == "free"


def _zeros(**values: float) -> Mapping[str, float]:
    folded = {row.name: 0.0 for row in COUNTERS.values() if row.fold is not None}
    return MappingProxyType(folded | values)


_NOTHING = _zeros()


MOST_PRICED = 4096  # prices of calls that are kept, about 10 KB each (chosen)


@lru_cache(maxsize=MOST_PRICED)
def price_call(call: Call, target: Target) -> Price:
    """The price of a call. Never raises: what cannot be priced is not modelled, with the reason."""
    tensors = (*call.tensors, *call.outputs)
    odd = sorted({t.torch_dtype for t in tensors} - set(DTYPES))
    row = OPS.get(call.name)
    if row is not None and row.status == "free":
        return Price(
            op=call.op, row=row.name, engine="none", status="free", seconds=0.0, totals=_NOTHING
        )
    if odd:
        return not_modelled(call, target, f"no format for {', '.join(odd)}")
    if call.is_of_library:
        return not_modelled(call, target, f"{call.op} has no kernel for trn: the host runs it")
    reason = ""
    for candidate, status in ((row, ""), (class_of(call), "inferred")):
        if candidate is None:
            continue
        try:
            return _priced(call, target, candidate, status or candidate.status, reason)
        except Exception as error:  # the user's operator must run whatever its price
            reason = f"{candidate.name}: {type(error).__name__}: {error}"
    return not_modelled(call, target, reason or "no row and no class")


def _priced(call: Call, target: Target, row: Op, status: str, reason: str) -> Price:
    lowered = row.lower(call, target)
    note = reason or row.note
    if isinstance(lowered, HostTransfer):
        seconds = lowered.nbytes / HOST_LINK_BYTES_PER_S + _transfer_overhead(target.chip)
        return Price(
            op=call.op,
            row=row.name,
            engine="dma",
            status=status,
            seconds=seconds,
            totals=_zeros(total_time=seconds),
            blocks=lowered.blocks,
            note=note,
            narrowed=call.narrowed,
        )
    runs = [_scheduled(program, target.chip) for program in lowered]
    totals = _joined(runs, target.chip)
    if not all(fits(run.program, target.chip) for run in runs):
        status, note = (
            "inferred",
            reason or "more at once than SBUF holds: a chip would cut it smaller",
        )
    return Price(
        op=call.op,
        row=row.name,
        engine=_busiest(runs) or row.engine,
        status=status,
        seconds=totals["total_time"],
        totals=totals,
        note=note,
        narrowed=call.narrowed,
    )


def price_run(name: str, run: GraphRun, chip: Chip) -> Price:
    """The price of a graph whose programs were scheduled as one."""
    totals = combine((fold(part), 1) for part in run.runs)
    busy = {engine: run.engine_busy_s(engine) for engine in Engine}
    totals |= {
        "total_time": run.exec_s + chip.launch.kernel_overhead_s,
        "total_exec_time": run.exec_s,
        "total_active_time": max(busy.values()),
        "neuroncore_cycle_count": run.exec_s * chip.base_clock_hz,
        "dma_active_time": busy[Engine.DMA],
        "dma_active_cycles": busy[Engine.DMA] * chip.base_clock_hz,
    }
    return Price(
        op=name,
        row=name,
        engine=max(busy, key=lambda engine: busy[engine]).value,
        status="modelled",
        seconds=totals["total_time"],
        totals=MappingProxyType(totals),
    )


def combined(name: str, parts: list[Price], chip: Chip) -> Price:
    """The price of several launches as one: their programs in a row, started once."""
    started = sum(1 for part in parts if part.totals and not part.free)
    totals = dict(combine((part.totals, 1) for part in parts)) if parts else dict(_NOTHING)
    saved = max(0, started - 1) * chip.launch.kernel_overhead_s
    seconds = max(0.0, sum(part.seconds for part in parts) - saved)
    totals["total_time"] = seconds
    busiest = max(parts, key=lambda part: part.seconds, default=None)
    return Price(
        op=name,
        row=name,
        engine=busiest.engine if busiest else "",
        status="modelled" if all(part.status == "modelled" for part in parts) else "inferred",
        seconds=seconds,
        totals=MappingProxyType(totals),
    )


def scaled(price: Price, name: str, share: float, chip: Chip) -> Price:
    """The price of a part of the work of a launch; starting it costs the same."""
    started = min(price.seconds, chip.launch.kernel_overhead_s)
    seconds = started + (price.seconds - started) * share
    totals = {key: value * share for key, value in price.totals.items()}
    totals["total_time"] = seconds
    fixed = MappingProxyType(totals)
    return replace(price, op=name, row=name, status="inferred", seconds=seconds, totals=fixed)


def _scheduled(program: object, chip: Chip) -> Run:
    return price(program, chip)  # type: ignore[arg-type]


def _joined(runs: list[Run], chip: Chip) -> Mapping[str, float]:
    """Programs one after the other in one launch: what starting costs is paid once."""
    if not runs:
        return _zeros(total_time=float(chip.launch.kernel_overhead_s))
    totals = combine((fold(run), 1) for run in runs)
    totals["total_time"] -= (len(runs) - 1) * chip.launch.kernel_overhead_s
    return MappingProxyType(totals)


def _busiest(runs: list[Run]) -> str:
    busy = {e.value: sum(run.engine_busy_s(e) for run in runs) for e in Engine}
    return max(busy, key=lambda name: busy[name]) if runs else ""


def _transfer_overhead(chip: Chip) -> float:
    return chip.dma.start_latency_s + chip.dma.completion_latency_s


def host_seconds(call: Call, chip: Chip) -> float:
    """Its tensors over the link and back."""
    tensors = (*call.tensors, *call.outputs)
    nbytes = sum(t.numel * itemsize(DTYPES.get(t.torch_dtype, "int64")) for t in tensors)
    return nbytes / HOST_LINK_BYTES_PER_S + 2 * _transfer_overhead(chip)


def not_modelled(call: Call, target: Target, reason: str) -> Price:
    """The price of what has none: its tensors to the host and back."""
    seconds = host_seconds(call, target.chip)
    return Price(
        op=call.op,
        row="",
        engine="host",
        status=NOT_MODELLED,
        seconds=seconds,
        totals=_zeros(total_time=seconds),
        blocks=True,
        note=reason,
        narrowed=call.narrowed,
    )


# --- reports ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """All launches of one operator that are priced alike.

    share   of the time that the cores worked, 0 to 1
    engine  the busiest one
    status  modelled, inferred or not modelled; `docs/timing.md` says what that means
    note    what the price leaves out, or why there is no program
    advice  what would make it cheaper, "" for nothing
    regime  its kind of time; four of five measurements of it lie within `range_low` to `range_high`
            times the prediction
    """

    op: str
    calls: int
    device_s: float
    share: float
    engine: str
    status: str
    narrowed: tuple[str, ...]  # dtypes that the chip does not have
    note: str
    advice: str = ""
    regime: str = ""
    range_low: float = 1.0
    range_high: float = 1.0

    @property
    def range_text(self) -> str:
        """The factors as tables show them."""
        return f"{self.range_low:.2f} to {self.range_high:.2f}"


def report_rows(priced: list[tuple[str, int, Price]]) -> list[OpRow]:
    """The rows of an op report, from (operator, launches, price)."""
    groups: dict[tuple[str, str, str, str], list[tuple[int, Price]]] = {}
    for op, calls, one in priced:
        key = (op, one.engine, one.status, one.note)
        groups.setdefault(key, []).append((calls, one))
    total = fsum(calls * one.seconds for _, calls, one in priced) or 1.0  # in any order
    rows = [_row(key, members, total) for key, members in groups.items()]
    return sorted(rows, key=lambda row: (-row.device_s, row.op, row.engine, row.note))


def _row(key: tuple[str, str, str, str], members: list[tuple[int, Price]], total: float) -> OpRow:
    seconds = fsum(calls * price.seconds for calls, price in members)
    found = range_of(_regime(key[0], members))
    return OpRow(
        op=key[0],
        calls=sum(calls for calls, _ in members),
        device_s=seconds,
        share=seconds / total,
        engine=key[1],
        status=key[2],
        narrowed=tuple(sorted({name for _, price in members for name in price.narrowed})),
        note=key[3],
        advice=advice(price for _, price in members),
        regime=found.regime,
        range_low=found.low,
        range_high=found.high,
    )


def _regime(op: str, members: list[tuple[int, Price]]) -> str:
    """Of the operator's launches together; a graph holds many operators."""
    totals = combine((price.totals, calls) for calls, price in members)
    launches = sum(calls for calls, _ in members)
    return regime_of(totals, launches=launches, whole=op.startswith("graph "))


# --- for the runtime ------------------------------------------------------------------------------

Programs = Callable[[], tuple[Program, ...]]
Lanes = Callable[[Chip, int], list[dict[str, tuple[Span, ...]]]]

_NAMES = tuple(_NOTHING)


@dataclass(frozen=True, slots=True)
class _Record:
    """A price whose totals are numbers in the order of _NAMES, and what makes its programs."""

    price: Price  # without totals
    totals: "array[float]"
    programs: Programs
    lanes: Lanes | None = None

    def whole(self) -> Price:
        return replace(
            self.price, totals=MappingProxyType(dict(zip(_NAMES, self.totals, strict=True)))
        )


_lock = Lock()
_recorded: list[_Record] = []


def record(
    op: str, arguments: str, results: str, policy: str, target: Target
) -> tuple[int, int, bool, bool]:
    """What the ledger asks: nanoseconds, the price's number, is it free, does it block."""
    op = intern(op)  # one of a few hundred
    found = price_call(read_call(op, arguments, results, policy), target)
    again = partial(_programs_of, op, arguments, results, policy, target, intern(found.row))
    return round(found.seconds * 1e9), remember(found, again), found.free, found.blocks


def _nothing() -> tuple[Program, ...]:
    return ()


def remember(price: Price, programs: Programs = _nothing, spans: Lanes | None = None) -> int:
    """The number under which `prices` gives it back.

    `programs` makes what was scheduled for it once more; `spans` the engine lanes of a trace, where
    they are not those of the programs one after the other.
    """
    numbers = array("d", (price.totals[name] for name in _NAMES))
    kept = _Record(replace(price, totals=_NOTHING), numbers, programs, spans)  # under 2 KB
    with _lock:
        _recorded.append(kept)
        return len(_recorded) - 1


def _programs_of(
    op: str, arguments: str, results: str, policy: str, target: Target, name: str
) -> tuple[Program, ...]:
    """The programs of a call by the row named, none for host transfers and what is not modelled."""
    call = read_call(op, arguments, results, policy)
    for row in (OPS.get(call.name), class_of(call) if name else None):
        if row is not None and row.name == name:
            lowered = row.lower(call, target)
            return () if isinstance(lowered, HostTransfer) else lowered
    return ()


def prices(numbers: Iterable[int]) -> list[Price | None]:
    """Recorded prices by number; None for -1."""
    return [_whole(n) if n >= 0 else None for n in numbers]


@lru_cache(maxsize=MOST_PRICED)
def _whole(number: int) -> Price:
    """One object for those who ask again: a profile has a price for each launch."""
    return _recorded[number].whole()


def programs(number: int) -> tuple[Program, ...]:
    """What the core runs in one launch of a recorded price, one program after the other."""
    return _recorded[number].programs()


def spans_of(number: int, chip: Chip, limit: int) -> list[dict[str, tuple[Span, ...]]]:
    """The engine lanes of a recorded price, of one program after the other (`timing.lanes`)."""
    spans = _recorded[number].lanes
    if spans is not None:
        return spans(chip, limit)
    return [lanes(program, chip, limit) for program in programs(number)]
