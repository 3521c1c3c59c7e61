"""What the emulated chip did in this process, as text for a terminal."""

from torch_trn_emu import op_counts, trn
from torch_trn_emu.settings import settings

__all__ = ["chip_report"]


def chip_report(most: int = 12) -> str:
    """The devices' memory, simulated time and most frequent ops, as text for a terminal."""
    counts = op_counts()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ranked[most:]
    lines = [f"{calls:>12,}  {name}" for name, calls in ranked[:most]]
    if rest:
        lines.append(f"{sum(calls for _, calls in rest):>12,}  to {len(rest)} other operators")
    return "\n".join(
        (
            trn.get_device_name(),
            trn.memory_summary(),
            simulated_time(),
            f"{trn.Event.range}; {trn.Event.range.basis(settings().chip)}",
            f"{sum(counts.values()):>12,}  calls of {len(counts)} operators, of which",
            *lines,
        )
    )


def simulated_time() -> str:
    """One line: the simulated time of all devices, and what of it the cores worked."""
    run = trn.counters()
    busy, idle = run["core_busy_time"], run["core_idle_time"]
    share = 100 * busy / (busy + idle) if busy + idle else 0.0
    return (
        f"simulated time {busy + idle:.3f} s for {run['launch_count']:,.0f} launches; "
        f"the cores were busy for {share:.0f} % of it and waited for the host for the rest"
    )
