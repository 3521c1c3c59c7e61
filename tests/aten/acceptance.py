"""What a call does on the CPU and on trn: the shape and dtype it gives, or the error it raises."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Outcome = list[tuple[tuple[int, ...], torch.dtype]] | type[Exception]


def outcome(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Outcome:
    """Shapes and dtypes of the results, or the class of the error."""
    try:
        results = tree_leaves(fn(*args, **kwargs))
    except Exception as error:  # whatever the CPU raises, trn raises
        return type(error)
    return [(tuple(t.shape), t.dtype) for t in results if isinstance(t, Tensor)]


def on_trn(values: Any) -> Any:
    """The same arguments on the device; a tensor's strides are kept."""
    return tree_map(lambda t: moved(t) if isinstance(t, Tensor) else t, values)


def moved(t: Tensor) -> Tensor:
    copy = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="trn")
    if t._is_view() and t.storage_offset() + t.numel() <= t._base.numel():
        return t._base.trn().as_strided(t.shape, t.stride(), t.storage_offset())
    return copy.copy_(t)


def differences(calls: list[tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]]):
    """Calls whose outcome on trn is not that of the CPU, as text."""
    found = []
    for name, fn, args, kwargs in calls:
        cpu = outcome(fn, *args, **kwargs)
        trn = outcome(fn, *on_trn(args), **on_trn(kwargs))
        if cpu != trn:
            found.append(f"{name}: {trn}, on the CPU {cpu}")
    return found
