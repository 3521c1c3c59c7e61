"""Connects the runtime's ledger to `pricing`, which is imported when the first operator runs."""

from functools import cache

from .. import _C
from ..settings import settings

__all__ = ["install_pricer"]


def install_pricer() -> None:
    """From now on each new signature is priced after its first kernel."""
    _C.set_pricer(_price)


@cache
def _policies() -> tuple[str, ...]:
    return tuple(_C.policy_names())


def _price(op: str, arguments: str, results: str, policy: int) -> tuple[int, int, bool, bool]:
    from ..calls import Target
    from ..pricing import record

    chosen = settings()
    target = Target(chosen.chip, chosen.lnc)
    return record(op, arguments, results, _policies()[policy], target)
