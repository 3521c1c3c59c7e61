"""Counters as scalars of TensorBoard, or of anything else with `add_scalar`.

    log = torch_trn_emu.tensorboard_callback(SummaryWriter())
    for step in range(steps):
        train_step()
        log(step)

Times are simulated.
"""

from collections.abc import Callable, Collection
from typing import Any

from .. import trn
from ..counters import COUNTERS, derive
from ..settings import settings

__all__ = ["tensorboard_callback"]


def tensorboard_callback(
    writer: Any,
    *,
    every: int = 1,
    counters: Collection[str] | None = None,
    prefix: str = "trn/",
) -> Callable[[int], None]:
    """Return a function of the step that logs the counters since its last call.

    writer    has `add_scalar(tag, value, step)`
    every     log on every such step only
    counters  names of `torch.trn.counters()`; None: all that are not zero
    prefix    of the tags

    Logs `memory_allocated` and `max_memory_allocated` of the current device too, in bytes. Counters
    may be reset between calls. Raises ValueError for an unknown counter.
    """
    if unknown := set(counters or ()) - set(COUNTERS):
        raise ValueError(f"no counter {', '.join(sorted(unknown))}: docs/counters.md lists them.")
    before = trn.counters()

    def log(step: int) -> None:
        nonlocal before
        if step % every:
            return
        now = trn.counters()
        interval = _between(before, now)
        before = now
        chosen = counters or [name for name, value in interval.items() if value]
        for name in chosen:
            writer.add_scalar(prefix + name, interval[name], step)
        writer.add_scalar(prefix + "memory_allocated", trn.memory_allocated(), step)
        writer.add_scalar(prefix + "max_memory_allocated", trn.max_memory_allocated(), step)

    return log


def _between(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What came since: differences of the counters that add up, and what follows from them."""
    if now["launch_count"] < before["launch_count"]:  # reset in between
        before = dict.fromkeys(before, 0.0)
    added = {
        name: now[name] - (0.0 if row.how == "max" else before[name])
        for name, row in COUNTERS.items()
        if row.derive is None
    }
    chosen = settings()
    return derive(added, chosen.chip, chosen.lnc)
