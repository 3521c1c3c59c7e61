"""The verdict: what bounds a run, and which changes would help most, from the counters alone.

`Verdict.bounds` splits the elapsed time: each launch's time goes to the engine that was busiest in
it, what starting programs costs and waiting for the host to `dispatch`. A change is a row of
CHANGES with the share of the elapsed time that it would take away at most; shares of different
changes overlap. To add one, add a row. A run with steps is judged by those that have settled.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..advice import GOOD_TRANSFER_BYTES, is_elementwise, transfer_bytes
from ..isa import Engine
from ..pricing import NOT_MODELLED, Price
from .communication import cure
from .recording import Launch, Recording
from .steps import WHOLE, settled

__all__ = ["BOUNDS", "CHANGES", "Change", "Verdict", "judge"]

# What can bound a run, for legends.
BOUNDS = {
    "tensor": "the Tensor engine",
    "vector": "the Vector engine",
    "scalar": "the Scalar engine",
    "gpsimd": "the GpSimd engine",
    "sync": "the Sync engine",
    "dma": "DMA and HBM",
    "host": "transfers to and from the host",
    "dispatch": "dispatch: the core waits for the host, or starts and ends programs",
    "collectives": "exposed communication: the core waits for collectives",
}
_SENTENCES = {
    "tensor": "Tensor-engine-bound: for {share} of the time the Tensor engine is the bottleneck.",
    "vector": "Vector-engine-bound: for {share} of the time the Vector engine is the bottleneck.",
    "scalar": "Scalar-engine-bound: for {share} of the time the Scalar engine is the bottleneck.",
    "gpsimd": "GpSimd-bound: for {share} of the time the GpSimd engine is the bottleneck.",
    "sync": "Sync-bound: for {share} of the time the Sync engine is the bottleneck.",
    "dma": "Memory-bound: for {share} of the time DMA and HBM are the bottleneck.",
    "host": "Host-bound: for {share} of the time tensors move between host and device.",
    "dispatch": "Dispatch-bound: for {share} of the time the core waits for the host or starts and "
    "ends programs.",
    "collectives": "Communication-bound: for {share} of the time the core waits for collectives.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something to change. `share` of the elapsed time is the most it would save, 0 to 1."""

    name: str
    share: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What bounds a run. `bounds` holds shares of the elapsed time, largest first.

    basis  what was judged: "steps 76 to 150 of 150", or "the whole run" where it has no two steps
    """

    bound: str
    bounds: Mapping[str, float]
    sentence: str
    changes: tuple[Change, ...]
    basis: str = WHOLE


def judge(recording: Recording, most: int = 3) -> Verdict:
    """The verdict on a recording with at most `most` changes, the largest share first."""
    recording, basis = settled(recording)
    bounds = _bounds(recording)
    if not recording.launches:
        return Verdict(bound="", bounds=bounds, sentence="Nothing was launched.", changes=())
    bound = next(iter(bounds))
    changes = [row(recording) for row in CHANGES]
    useful = sorted((c for c in changes if c.share >= 0.005), key=lambda c: (-c.share, c.name))
    return Verdict(
        bound=bound,
        bounds=bounds,
        sentence=_SENTENCES[bound].format(share=_percent(bounds[bound])) + _based_on(basis),
        changes=tuple(useful[:most]),
        basis=basis,
    )


def _based_on(basis: str) -> str:
    return "" if basis == WHOLE else f" Based on {basis}, once training has settled."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _overhead_ns(launch: Launch, recording: Recording) -> float:
    """What starting and ending the program of a launch costs the core."""
    if launch.price.engine == "host" or not _engine_times(launch.price):
        return 0.0
    return min(launch.duration_ns, recording.chip.launch.kernel_overhead_s * 1e9)


def _bounds(recording: Recording) -> dict[str, float]:
    ns = dict.fromkeys(BOUNDS, 0.0)
    for launch in recording.launches:
        overhead_ns = _overhead_ns(launch, recording)
        ns["dispatch"] += overhead_ns + launch.idle_ns
        ns[_bound_of(launch.price)] += launch.duration_ns - overhead_ns
    ns["collectives"] = sum(x.exposed_ns for x in recording.collectives)
    total = sum(ns.values()) or 1.0
    return {name: ns[name] / total for name in sorted(ns, key=lambda name: -ns[name])}


def _bound_of(price: Price) -> str:
    if price.status == NOT_MODELLED or not _engine_times(price):
        return "host"
    return price.engine if price.engine in BOUNDS else "dma"


def _engine_times(price: Price) -> dict[str, float]:
    """Active seconds of each engine in one launch; empty where no program runs."""
    names = [e.value for e in Engine if e is not Engine.DMA]
    times = {name: price.totals[f"{name}_engine_active_time"] for name in names}
    times["dma"] = price.totals["dma_active_time"]
    return times if any(times.values()) else {}


# --- changes --------------------------------------------------------------------------------------


def _share(ns: float, recording: Recording) -> float:
    total = sum(x.duration_ns + x.idle_ns for x in recording.launches)
    total += sum(x.exposed_ns for x in recording.collectives)
    return ns / total if total else 0.0


def _saved_ns(launches: Iterable[Launch], engine: str, factor: float) -> float:
    """If `engine` took `factor` of its time: the next busiest engine is then the limit."""
    saved = 0.0
    for launch in launches:
        times = _engine_times(launch.price)
        before = max(times.values(), default=0.0)
        after = max(
            [times.get(engine, 0.0) * factor, *(t for e, t in times.items() if e != engine)]
        )
        saved += max(0.0, before - after) * 1e9
    return saved


def _names(launches: Iterable[Launch], most: int = 3) -> str:
    """The operators that take longest, for a sentence."""
    times: dict[str, int] = {}
    for launch in launches:
        times[launch.op] = times.get(launch.op, 0) + launch.duration_ns
    return ", ".join(sorted(times, key=lambda op: (-times[op], op))[:most])


def _compile(r: Recording) -> Change:
    waits = sum(x.idle_ns for x in r.launches)
    starts = sum(_overhead_ns(x, r) for x in r.launches)
    share = _share(waits + starts, r)
    dispatch_us = sum(x.dispatch_ns for x in r.launches) / (len(r.launches) or 1) / 1e3
    compiled = sum(x.price.row == "graph" for x in r.launches) > len(r.launches) / 2
    cure = "" if compiled else "torch.compile launches a whole graph at once. "
    return Change(
        name="compile",
        share=share,
        text=f"Dispatch takes {_percent(share)} of the time ({len(r.launches):,} launches of "
        f"{dispatch_us:.0f} us on the host, {r.chip.launch.kernel_overhead_s * 1e6:.0f} us to "
        f"start and end a program). {cure}Larger batches make each launch longer.",
    )


def _reads(r: Recording) -> Change:
    """Idle time behind a launch that the host waited for, beyond one dispatch."""
    saved, reads = 0, 0
    for before, after in zip(r.launches, r.launches[1:], strict=False):
        if before.price.blocks and after.idle_ns and before.device == after.device:
            reads += 1
            saved += after.idle_ns
    behind = [x.idle_ns for x in r.launches if not x.price.blocks]
    usual = sum(behind) / len(behind) if behind else 0.0
    share = _share(max(0.0, saved - usual * reads), r)
    return Change(
        name="reads",
        share=share,
        text=f"For {_percent(share)} of the time the core is idle after the host read a value "
        f"({reads:,} times). Call item(), cpu() and print less often, or copy with "
        "non_blocking=True.",
    )


def _fuse(r: Recording) -> Change:
    """Element-wise operators bound by HBM, whose operands could stay in SBUF."""
    found = [x for x in r.launches if x.price.engine == "dma" and is_elementwise(x.price)]
    share = _share(_saved_ns(found, "dma", 0.0), r)
    return Change(
        name="fuse",
        share=share,
        text=f"Element-wise operators spend {_percent(share)} of the time moving operands to and "
        f"from HBM ({_names(found)}). torch.compile fuses them and keeps the operands in SBUF.",
    )


def _narrow(r: Recording, source: float, target: str, advice: str, name: str) -> Change:
    """Matrix products that a narrower format would speed up; `source` is flops adjusted to."""
    rates = r.chip.tensor_engine.macs_per_pe_cycle
    now = {4.0: "float32", 1.0: "bfloat16"}[source]
    found = [
        x
        for x in r.launches
        if x.price.totals["hardware_flops"]
        and x.price.totals["adjusted_hardware_flops"] >= source * x.price.totals["hardware_flops"]
        and x.price.totals["adjusted_hardware_flops"]
        < 4 * source * x.price.totals["hardware_flops"]
    ]
    factor = rates[now] / rates[target] if target in rates else 1.0
    share = _share(_saved_ns(found, "tensor", factor), r)
    return Change(
        name=name,
        share=share,
        text=f"For {_percent(share)} of the time the Tensor engine multiplies {now}; {target} is "
        f"{1 / factor:.0f} times as fast ({_names(found)}). Set {advice}",
    )


def _wide(r: Recording) -> Change:
    advice = 'torch.backends.trn.matmul.precision = "bf16", or TRN_EMU_MATMUL.'
    return _narrow(r, 4.0, "bfloat16", advice, "bf16")


def _mx(r: Recording) -> Change:
    advice = 'torch.backends.trn.matmul.precision = "mxfp8" (attention: "mxfp8_all").'
    return _narrow(r, 1.0, "mxfp8", advice, "mxfp8")


def _optimizer(r: Recording) -> Change:
    fused_ones = {x.module for x in r.launches if x.phase == "optimizer" and "_fused_" in x.op}
    found = [x for x in r.launches if x.phase == "optimizer" and x.module not in fused_ones]
    saved = sum(x.duration_ns + x.idle_ns for x in found)
    one = max((x.duration_ns for x in found), default=0)
    share = _share(max(0, saved - one), r) if len(found) > 1 else 0.0
    return Change(
        name="optimizer",
        share=share,
        text=f"The optimizer's {len(found):,} launches take {_percent(share)} of the time "
        f"({_names(found)}). fused=True makes one pass over parameters and state.",
    )


def _host(r: Recording) -> Change:
    found = [x for x in r.launches if x.price.status == NOT_MODELLED]
    share = _share(sum(x.duration_ns for x in found), r)
    return Change(
        name="host",
        share=share,
        text=f"Operators without a program for the chip take {_percent(share)} of the time, priced "
        f"as host work ({_names(found)}). Use other operators instead.",
    )


def _transfers(r: Recording) -> Change:
    found = [x for x in r.launches if x.price.status != NOT_MODELLED and not _engine_times(x.price)]
    share = _share(sum(x.duration_ns for x in found), r)
    return Change(
        name="transfers",
        share=share,
        text=f"For {_percent(share)} of the time tensors move between host and device "
        f"({_names(found)}). Keep them on the device, or overlap the copies on another stream.",
    )


_MOVES = frozenset(
    "cat clone copy_ _to_copy contiguous transpose permute repeat stack constant_pad_nd".split()
)


def _copies(r: Recording) -> Change:
    found = [
        x
        for x in r.launches
        if x.op.removeprefix("aten::").split(".")[0] in _MOVES and _engine_times(x.price)
    ]
    share = _share(sum(x.duration_ns for x in found), r)
    return Change(
        name="copies",
        share=share,
        text=f"Copies on the device take {_percent(share)} of the time ({_names(found)}). Avoid "
        "casts and layout changes, or let torch.compile fuse them.",
    )


def _small_transfers(r: Recording) -> Change:
    found, saved = [], 0.0
    for x in r.launches:
        size = transfer_bytes(x.price)
        if x.price.engine == "dma" and 0 < size < GOOD_TRANSFER_BYTES:
            found.append(x)
            saved += _saved_ns([x], "dma", size / GOOD_TRANSFER_BYTES)
    share = _share(saved, r)
    return Change(
        name="small transfers",
        share=share,
        text=f"DMA transfers below 32 KiB take {_percent(share)} of the time ({_names(found)}). "
        "Larger, contiguous tensors use the bandwidth.",
    )


def _hbm_matmul(r: Recording) -> Change:
    found = [x for x in r.launches if x.price.engine == "dma" and x.price.totals["model_flops"]]
    share = _share(_saved_ns(found, "dma", 0.0), r)
    return Change(
        name="batch",
        share=share,
        text=f"Matrix multiplies and attention wait for HBM for {_percent(share)} of the time "
        f"({_names(found)}). Larger batches reuse each byte more often.",
    )


def _communication(r: Recording) -> Change:
    exposed = sum(x.exposed_ns for x in r.collectives)
    active = sum(x.duration_ns for x in r.collectives)
    share = _share(exposed, r)
    hidden = _percent(1 - exposed / active) if active else "none"
    return Change(
        name="communication",
        share=share,
        text=f"Communication is exposed for {_percent(share)} of the time ({len(r.collectives):,} "
        f"collectives, {hidden} of their time is hidden behind computation). "
        f"{cure(r.collectives) if exposed else ''}",
    )


CHANGES: tuple[Callable[[Recording], Change], ...] = (
    _compile,
    _reads,
    _fuse,
    _wide,
    _mx,
    _optimizer,
    _host,
    _transfers,
    _copies,
    _small_transfers,
    _hbm_matmul,
    _communication,
)
