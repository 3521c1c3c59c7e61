"""What says cuda under `--as-cuda`: generators, streams, events, fake tensors, texts of devices.

Their types are torch._C's, so `isinstance` and what torch checks in C++ hold as before. Checked on
torch 2.13.0.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import torch

from .. import _C, trn
from ..torch_private import FakeTensor

__all__ = ["map_types"]


def _stream_repr(self: torch.Stream) -> str:
    return f"<torch.cuda.Stream device={self.device} cuda_stream={self.stream_id:#x}>"


def _event_repr(self: torch.Event) -> str:
    number = self.event_id
    return f"<torch.cuda.Event {number:#x}>" if number else "<torch.cuda.Event uninitialized>"


# What names devices in its messages, and in the places of shards that it saves. Each compares
# devices, and makes tensors on them, by calls that take both names.
_NAMES_DEVICES = re.compile(r"torch\.(distributed|nn\.parallel)(\.|$)")


def _named_in_messages(text: Callable[[torch.device], str]) -> Callable[[torch.device], str]:
    """The text of a device, with the name of cuda where torch.distributed puts it in a message."""

    def shown(self: torch.device) -> str:
        real = text(self)
        asking = sys._getframe(1).f_globals.get("__name__", "")
        named = self.type == "trn" and _NAMES_DEVICES.match(asking)
        return real.replace("trn", "cuda", 1) if named else real

    return shown


def _says_cuda(device: Any, to_cuda: Callable[[Any], Any], real_to: tuple[str, ...]) -> property:
    """The device as cuda for scripts and libraries; modules whose names begin so hear the real."""

    def shown(self: Any) -> torch.device:
        real: torch.device = device.__get__(self)
        asking = sys._getframe(1).f_globals.get("__name__", "")
        by_torch = asking.startswith(real_to) and not asking.startswith("torch.testing.")
        return real if by_torch else to_cuda(real)

    return property(shown)


def map_types(to_trn: Callable[[Any], Any], to_cuda: Callable[[Any], Any]) -> None:
    """`to_trn` and `to_cuda` translate a device or its name; the rest they leave as it is."""

    def arguments(
        args: tuple[object, ...], kwargs: dict[str, object] | None
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return tuple(map(to_trn, args)), {k: to_trn(v) for k, v in (kwargs or {}).items()}

    generic: tuple[type, ...] = (torch.Stream, torch.Event)
    for kind in generic:
        _C.translate_constructor(kind, arguments)
    for kind in (torch.Generator, *generic):
        real: Any = kind.device  # type: ignore[attr-defined]
        shown = _says_cuda(real, to_cuda, () if kind is torch.Generator else ("torch.",))
        _C.set_type_attribute(kind, "device", shown)
    fake: Any = FakeTensor
    fake.device = _says_cuda(fake.device, to_cuda, ("torch.", "torch_trn_emu."))
    for kind, representation in ((torch.Stream, _stream_repr), (torch.Event, _event_repr)):
        _C.set_type_attribute(kind, "__repr__", representation)
    _C.set_type_attribute(torch.Event, "cuda_event", property(lambda self: self.event_id))
    device: Any = torch.device
    for text in ("__repr__", "__str__"):
        _C.set_type_attribute(device, text, _named_in_messages(getattr(device, text)))
    _C.equate_devices_with_cuda()
    handle = property(lambda self: self.stream_id)
    trn.Stream.__repr__ = _stream_repr  # type: ignore[method-assign, assignment]
    trn.Stream.cuda_stream = handle  # type: ignore[attr-defined]
    trn.Stream.__cuda_stream__ = lambda self: (0, self.stream_id)  # type: ignore[attr-defined]
