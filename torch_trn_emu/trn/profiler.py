"""`torch.trn.profiler`, as `torch.cuda.profiler`: it bounds what an outside profiler records.

There is none here, so nothing happens; `torch_trn_emu.profile` and `torch.profiler` record.
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["profile", "start", "stop"]


def start() -> None:
    """Accepted without effect."""


def stop() -> None:
    """Accepted without effect."""


@contextmanager
def profile() -> Iterator[None]:
    """A block between `start` and `stop`."""
    start()
    try:
        yield
    finally:
        stop()
