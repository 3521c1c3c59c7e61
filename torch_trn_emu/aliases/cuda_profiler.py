"""torch's profilers under the name cuda: what a script asks of CUDA is the time of trn.

Checked on torch 2.13.0.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from .. import _C
from ..settings import DEVICE_TYPE
from ..torch_private import KinetoProfile

__all__ = ["map_profilers"]


def _activities(given: Any) -> Any:
    """CUDA's activities as those of the device, in a set, a list or a dict of filters."""
    if given is None:
        return None
    renamed = [ProfilerActivity.PrivateUse1 if one == ProfilerActivity.CUDA else one
               for one in given]  # fmt: skip
    return dict(zip(renamed, given.values(), strict=True)) if isinstance(given, dict) else renamed


def _with_activities(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def call(self: Any, *, activities: Any = None, **kwargs: Any) -> None:
        init(self, activities=_activities(activities), **kwargs)

    return call


def _with_device(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def call(self: Any, *args: Any, use_cuda: bool = False, **kwargs: Any) -> None:
        if use_cuda or kwargs.get("use_device") == "cuda":
            kwargs["use_device"] = DEVICE_TYPE
        init(self, *args, **kwargs)

    return call


def _with_columns_of_cuda(table: Callable[..., str]) -> Callable[..., str]:
    """A table takes the name of the device for its columns from its first event."""

    @wraps(table)
    def call(self: Any, *args: Any, **kwargs: Any) -> str:
        first = self[0] if self else None
        if first is None or first.use_device != DEVICE_TYPE:
            return table(self, *args, **kwargs)
        first.use_device = "cuda"
        try:
            return table(self, *args, **kwargs)
        finally:
            first.use_device = DEVICE_TYPE

    return call


def _of_cuda(supported: Callable[[], set[ProfilerActivity]]) -> Callable[[], set[ProfilerActivity]]:
    """What scripts ask before they ask for CUDA's activities."""

    @wraps(supported)
    def call() -> set[ProfilerActivity]:
        return (supported() - {ProfilerActivity.PrivateUse1}) | {ProfilerActivity.CUDA}

    return call


def map_profilers() -> None:
    """torch.profiler.profile, torch.autograd.profiler.profile and emit_nvtx; tables say CUDA."""
    torch.profiler.supported_activities = _of_cuda(torch.profiler.supported_activities)
    events: Any = torch.autograd.profiler_util.EventList
    events.table = _with_columns_of_cuda(events.table)
    base: Any = KinetoProfile
    base.__init__ = _with_activities(base.__init__)
    older = torch.autograd.profiler.profile
    older.__init__ = _with_device(older.__init__)  # type: ignore[method-assign]
    _C.answer_to_cuda_profiler()  # for emit_nvtx, whose ranges go nowhere
