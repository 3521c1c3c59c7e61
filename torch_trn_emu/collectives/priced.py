"""The operations priced so far in this process: csrc/distributed names one by its place here."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..chip import Chip, get_system
from ..settings import Settings, settings
from .model import duration

__all__ = ["Priced", "bus_factor", "price", "priced", "seconds_on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One operation on one number of bytes among one group."""

    operation: str
    bytes: int  # the full buffer
    ranks: int
    algorithm: str
    level: str  # the outermost links that it crosses
    duration_ns: int
    bandwidth_bound: bool  # the transfer takes more than the start and the hops

    @property
    def algorithm_bandwidth(self) -> float:
        """Bytes/s of the buffer."""
        return self.bytes / (self.duration_ns / 1e9) if self.duration_ns else 0.0

    @property
    def bus_bandwidth(self) -> float:
        """Bytes/s that each link carries."""
        return self.algorithm_bandwidth * bus_factor(self.operation, self.ranks)


_UNKNOWN = Priced(
    operation="", bytes=0, ranks=0, algorithm="", level="", duration_ns=0, bandwidth_bound=False
)
_priced: list[Priced] = []


def price(
    op: str, size_bytes: int, ranks: Sequence[int], in_graph: bool = False
) -> tuple[int, int]:
    """Nanoseconds of an operation among global ranks, and the row to ask for with `priced`.

    in_graph  a compiled program issues it, not the host
    """
    chosen = settings()
    caller = chosen.collectives or ("graph" if in_graph else "eager")
    cores = tuple(_core_of(rank, chosen) for rank in ranks)
    per_chip = chosen.chip.logical_cores(chosen.lnc)
    found = duration(op, size_bytes, cores, chosen.system, per_chip, caller)
    ns = round(found.seconds * 1e9)
    row = Priced(
        operation=op,
        bytes=size_bytes,
        ranks=len(ranks),
        algorithm=found.algorithm,
        level=found.level,
        duration_ns=ns,
        bandwidth_bound=found.bandwidth_bound,
    )
    _priced.append(row)
    return ns, len(_priced) - 1


def priced(row: int) -> Priced:
    """What `price` gave the number `row`; nothing for -1."""
    return _priced[row] if row >= 0 else _UNKNOWN


def _core_of(rank: int, chosen: Settings) -> int:
    """The core of a rank: torchrun fills servers one after another."""
    if not chosen.ranks_per_server:
        return rank
    server, local = divmod(rank, chosen.ranks_per_server)
    cores = chosen.system.chips_per_server * chosen.chip.logical_cores(chosen.lnc)
    return server * cores + local


def bus_factor(op: str, ranks: int) -> float:
    """What each link carries of the buffer, as nccl-tests define it."""
    if op.startswith("all_reduce") and ranks > 1:
        return 2 * (ranks - 1) / ranks
    alike = op in ("broadcast", "reduce", "send", "recv") or ranks <= 1
    return 1.0 if alike else (ranks - 1) / ranks


def seconds_on(
    chip: Chip, lnc: int, op: str, size_bytes: int, ranks: Sequence[int], in_graph: bool
) -> float:
    """What `price` gives for a chip; on another than the process's in the system it comes in."""
    chosen = settings()
    if chosen.chip.name == chip.name:
        system, cores = chosen.system, tuple(_core_of(rank, chosen) for rank in ranks)
    else:
        system, cores = get_system("", chip.name), tuple(ranks)
    caller = chosen.collectives or ("graph" if in_graph else "eager")
    return duration(op, size_bytes, cores, system, chip.logical_cores(lnc), caller).seconds
