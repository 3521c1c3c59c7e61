"""Which operators ran, by `torch_neuronx.get_executed_ops` and its kin."""

from collections import Counter

from ...trn.launches import op_counts

__all__ = ["clear_op_tracking", "get_executed_ops", "get_fallback_ops"]

_before: Counter[str] = Counter()


def get_executed_ops() -> list[str]:
    """Operators that the cores ran since the start or `clear_op_tracking`: "aten::mm"."""
    return sorted(op for op, count in op_counts().items() if count > _before[op])


def get_fallback_ops() -> list[str]:
    """Operators that ran on the host instead: none, every operator is one of the device here."""
    return []


def clear_op_tracking() -> None:
    """Forget the operators so far. The device's counters go on."""
    _before.clear()
    _before.update(op_counts())
