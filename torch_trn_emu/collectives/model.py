"""The duration of a collective by level, algorithm and group. An algorithm is one row.

A group spans levels of links: its chips, the server, the UltraServer, the network. On each level
the fastest algorithm that the caller may use is taken; the levels add up, as the vendor's
hierarchical collectives do [coll]. Latency and transfer overlap where they are alike:

    t = base + (latency^p + transfer^p)^(1/p)

Sources
  [coll]  Neuron SDK, neuron-runtime/explore: intranode and internode collectives
  [nccom] Neuron SDK, tools/neuron-sys-tools/nccom-test.rst
  [xpu]   xpu-perf, NEURON vendor notes (trn2, TorchNeuron beta), called from eager PyTorch
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from ..chip import Figure, Level, System, calibrated, chosen, documented, get_chip, measured

__all__ = ["ALGORITHMS", "KNEE", "Algorithm", "Duration", "duration", "extents"]

KNEE = calibrated(1.5, "how latency and transfer overlap", "nccom all_reduce of 2 ranks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """How `n` members of one level gather or reduce."""

    name: str
    steps: Callable[[int], float]  # hops one after another
    efficiency: Figure  # of the links' bandwidth
    graph_only: bool  # not for collectives that the host starts one by one
    most_bytes: float = math.inf  # of the full buffer
    least_bytes: float = 0.0


# [coll] gives steps, bytes and where each is used; host-driven collectives have the ring alone.
ALGORITHMS = (
    Algorithm(
        name="mesh",
        steps=lambda n: 1,
        efficiency=chosen(0.8, "all links at once, as many as there are"),
        graph_only=True,
        most_bytes=documented(1 << 20, "[coll] below 1 MB on trn2"),
    ),
    Algorithm(
        name="recursive doubling and halving",
        steps=lambda n: math.log2(n),
        efficiency=chosen(0.7, "distances grow with each step"),
        graph_only=True,
        most_bytes=documented(56 << 20, "[coll] 1 to 56 MB on trn2"),
    ),
    Algorithm(
        name="KangaRing",
        steps=lambda n: n / 2,
        efficiency=calibrated(0.83, "links in a ring", "trn2_allreduce_r16 512 MiB"),
        graph_only=True,
        least_bytes=documented(56 << 20, "[coll] above 56 MB on trn2"),
    ),
    Algorithm(
        name="ring",
        steps=lambda n: n - 1,
        efficiency=calibrated(0.83, "links in a ring", "trn2_allreduce_r16 512 MiB"),
        graph_only=False,
    ),
)

# How long the call itself takes, with next to no data.
_BASE = {
    "graph": {"": calibrated(6e-6, "start of a collective in a graph", "trn2_allgather_r32")},
    "eager": {
        "": measured(91e-6, "[xpu] all_gather"),
        "all_reduce": measured(105e-6, "[xpu] all_reduce of 2 MiB"),
        "all_to_all": measured(360e-6, "[xpu] all_to_all"),
    },
}
_HOP_ON_CHIP = chosen(0.5e-6, "cores of a chip see one memory")

# What a collective consists of: reduce_scatter and all_gather phases, and how much of the buffer
# each moves.
_PHASES = {
    "all_gather": 1,
    "all_gather_into_tensor": 1,
    "reduce_scatter": 1,
    "reduce_scatter_tensor": 1,
    "broadcast": 1,
    "gather": 1,
    "scatter": 1,
    "reduce": 2,
    "all_reduce": 2,
    "all_reduce_coalesced": 2,
    "barrier": 2,
}


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds, and what they consist of."""

    seconds: float
    algorithm: str  # of the outermost level
    level: str  # the outermost
    bandwidth_bound: bool  # transfer is more than latency and base


def extents(ranks: Sequence[int], per_chip: int, system: System) -> list[tuple[Level | None, int]]:
    """How many members meet at each level, from the chip (None) outward; 1 where nobody meets."""
    units = {(rank // per_chip): 0 for rank in ranks}
    for rank in ranks:
        units[rank // per_chip] += 1
    out: list[tuple[Level | None, int]] = [(None, max(units.values()))]
    members = set(units)
    size = 1
    for level in system.levels:
        groups: dict[int, set[int]] = {}
        for chip in members:
            groups.setdefault(chip // level.chips if level.chips else 0, set()).add(chip // size)
        out.append((level, max(len(group) for group in groups.values())))
        size = level.chips or size
    return out


def _on(level: Level | None, sharing: int, chip: str) -> tuple[float, float, float]:
    """Bytes/s of one rank, seconds of a hop and mean distance on a level."""
    if level is None:
        return get_chip(chip).rank_bytes_per_s, _HOP_ON_CHIP, 1.0
    return level.bytes_per_s / sharing, level.hop_s, level.mean_hops


def _steps(
    level: Level | None, n: int, whole: float, sharing: int, chip: str, caller: str
) -> tuple[float, float, str]:
    """Latency, transfer and algorithm of one phase among `n` members with a buffer of `whole`."""
    bandwidth, hop, distance = _on(level, sharing, chip)
    moved = whole * (n - 1) / n
    best: tuple[float, float, str] | None = None
    for algorithm in ALGORITHMS:
        fits = algorithm.least_bytes <= whole <= algorithm.most_bytes
        if not fits or (algorithm.graph_only and caller == "eager"):
            continue
        # On a chip the bandwidth is what was measured; a mesh on a torus takes several hops.
        speed = bandwidth if level is None else bandwidth * algorithm.efficiency
        if level is not None and algorithm.name == "mesh":
            speed /= distance
        found = (algorithm.steps(n) * hop, moved / speed, algorithm.name)
        if best is None or sum(found[:2]) < sum(best[:2]):
            best = found
    assert best is not None  # the ring always fits
    return best


def _all_to_all(
    spans: Sequence[tuple[Level | None, int]], total: float, chip: str
) -> tuple[float, float, str, str]:
    """The slowest level bounds it: its share of the pieces crosses its links."""
    n = math.prod(count for _, count in spans)
    within, latency, transfer, name = 1, 0.0, 0.0, "chip"
    for level, count in spans:
        if count > 1:
            bandwidth, hop, distance = _on(level, spans[0][1], chip)
            share = within * (count - 1) / n
            transfer = max(transfer, total * share * distance / bandwidth)
            latency, name = hop, level.name if level else "chip"
        within *= count
    return latency, transfer, "mesh", name


@cache
def duration(
    op: str,
    size_bytes: int,
    ranks: tuple[int, ...],
    system: System,
    per_chip: int,
    caller: str = "eager",
) -> Duration:
    """The duration of `op` among the global `ranks` of a system.

    size_bytes  the full buffer: output of all_gather, input of reduce_scatter, both of all_reduce
    caller      "eager" or "graph": who starts it
    """
    spans = extents(ranks, per_chip, system)
    base_of = _BASE[caller]
    family = "all_to_all" if op.startswith("all_to_all") else op
    base = base_of.get(family, base_of[""])
    level = "chip"
    latency = transfer = 0.0
    algorithm = "none"
    if family == "all_to_all":
        latency, transfer, algorithm, level = _all_to_all(spans, size_bytes, system.chip)
    elif op == "send":
        outer = next((span for span in reversed(spans) if span[1] > 1), spans[0])
        bandwidth, latency, _ = _on(outer[0], 1, system.chip)
        transfer, algorithm = size_bytes / bandwidth, "direct"
        level = outer[0].name if outer[0] else "chip"
    else:
        whole = float(size_bytes)
        for where, count in spans:
            if count == 1:
                continue
            lat, move, algorithm = _steps(where, count, whole, spans[0][1], system.chip, caller)
            latency += _PHASES.get(op, 1) * lat
            transfer += _PHASES.get(op, 1) * move
            level = where.name if where else "chip"
            whole /= count
    overlapped = float((latency**KNEE + transfer**KNEE) ** (1 / KNEE))
    return Duration(base + overlapped, algorithm, level, transfer > latency + base)
