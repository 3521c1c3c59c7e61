"""The published measurements of collectives, and what reproduces them: a row for each condition.

The vendor calls its tables examples, not current performance: latencies of like operations differ
between pages by a factor of 50. So each sweep has its own latency and bandwidth, fitted to every
other of its rows (benchmarks/data/measured_collectives.csv); the rest judge the form of the model.
The figures that the emulator uses are in model.py.
"""

from dataclasses import dataclass

from .model import KNEE

__all__ = ["CONDITIONS", "Condition", "predicted_s"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One algorithm of one sweep: base + (latency^p + transfer^p)^(1/p), as in model.py."""

    series: str
    algorithm: str
    base_s: float
    latency_s: float
    bus_bytes_per_s: float
    op: str = ""  # of series that hold several


# Fitted to every other row of a sweep, or to both of two.
CONDITIONS = (
    Condition("trn1_allreduce_r2", "ring", 0, 58e-6, 55.6e9),
    Condition("trn1_allreduce_r64_n2", "mesh", 0, 520e-6, 0.002e9),
    Condition("trn1_allreduce_r64_n2", "ring", 0, 1310e-6, 49e9),
    Condition("trn1_allgather_r32", "ring", 151e-6, 0, 18e9),
    Condition("trn2_allgather_r32", "mesh", 6.1e-6, 0, 29.8e9),
    Condition("trn2_allgather_r8", "mesh", 9.97e-6, 0, 94e9),
    Condition("trn2_allreduce_r16", "mesh", 0, 299.7e-6, 3e9),
    Condition("trn2_allreduce_r16", "recursive doubling and halving", 648e-6, 0, 104e9),
    Condition("trn2_allreduce_r16", "KangaRing", 648e-6, 0, 111e9),
    Condition("trn2_allgather_r64_streams", "ring", 101.2e-6, 0, 63e9),
    Condition("singles", "ring", 0, 58e-6, 44.6e9, "all_reduce"),
    Condition("singles", "network", 90e-6, 0, 0.606e9, "all_to_all_v"),
    Condition("trn2_eager_latency", "ring", 50e-6, 0, 38e9, "all_reduce"),
    Condition("trn2_eager_latency", "mesh", 360e-6, 0, 54.2e9, "all_to_all"),
)


def predicted_s(series: str, op: str, ranks: int, size_bytes: float) -> float:
    """The fastest of the condition's algorithms."""
    moved = size_bytes * (ranks - 1) / ranks * (2 if op == "all_reduce" else 1)
    found = [
        row.base_s
        + float((row.latency_s**KNEE + (moved / row.bus_bytes_per_s) ** KNEE) ** (1 / KNEE))
        for row in CONDITIONS
        if row.series == series and row.op in ("", op)
    ]
    if not found:
        raise ValueError(f"no condition reproduces the series {series!r} ({op}).")
    return min(found)
