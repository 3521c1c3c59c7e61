"""Streams and events in simulated time."""

from dataclasses import replace
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..chip.calibration import MIXED
from ..errors import Unsupported
from ..ranges import Range, range_of
from ..settings import DEVICE_TYPE, settings
from ..torch_private import DeviceType
from .device import Device, _lazy_init, current_device, index_of

__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "current_stream",
    "default_stream",
    "set_stream",
    "stream",
]


STREAMS = 64  # of a device: kMaxStreams in csrc/runtime/stream.h


class Stream(torch.Stream):
    """A queue of a logical core. `Stream(device=None, priority=0)`, as `torch.cuda.Stream`."""

    def __new__(cls, device: Device = None, priority: int = 0, **kwargs: Any) -> "Stream":
        _lazy_init()
        if kwargs:  # stream_id, device_index, device_type: an existing stream
            number = kwargs.get("stream_id", 0)
            if not 0 <= number < STREAMS:
                raise ValueError(
                    f"trn has no stream {number}: the numbers of a device's streams are 0 to "
                    f"{STREAMS - 1}. Take the stream_id of a stream that exists."
                )
            return super().__new__(cls, **kwargs)
        where = torch.device(DEVICE_TYPE, index_of(device))
        return super().__new__(cls, device=where, priority=priority)

    @property
    def priority(self) -> int:
        """0: all streams of a core have the same priority."""
        return 0

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """(0, 0): streams have no priorities."""
        return 0, 0

    if TYPE_CHECKING:  # the event is one of `Event` by its isinstance()

        def record_event(self, event: torch.Event | None = None) -> "Event": ...


_device_of: Any = torch.Event.device.__get__  # whatever name an alias has it say


class _EventType(type):
    # torch.Stream and torch.Event accept exact torch.Event objects only (2.13), so that is what a
    # call makes; this type keeps torch.cuda.Event's signature and isinstance().
    def __call__(
        cls,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,  # for captured graphs: a capture does not keep events here
    ) -> torch.Event:
        _lazy_init()
        if external:
            raise Unsupported(
                "Event(external=True): captured graphs hold no events on trn. Record it outside of "
                "the capture, or measure the replay."
            )
        return torch.Event(
            DEVICE_TYPE, enable_timing=enable_timing, blocking=blocking, interprocess=interprocess
        )

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Event) and _device_of(instance).type == DEVICE_TYPE

    @property
    def range(cls) -> Range:
        """Where four of five measurements lie, as factors on `elapsed_time` over several operators.

        torch.Event takes no further attributes, so it is one of the class.
        `torch_trn_emu.profile()` tells the regime of what ran.
        """
        return range_of(MIXED)


class Event(torch.Event, metaclass=_EventType):
    """A mark in a stream; `elapsed_time` between two gives simulated milliseconds.

    `Event.range` says how far such a time can be from a chip's: factors on it.
    """


def _wrap(plain: torch.Stream) -> Stream:
    return Stream(
        stream_id=plain.stream_id, device_index=plain.device_index, device_type=plain.device_type
    )


def current_stream(device: Device = None) -> Stream:
    """The stream on which this thread launches work."""
    _lazy_init()
    return _wrap(torch.accelerator.current_stream(torch.device(DEVICE_TYPE, index_of(device))))


def default_stream(device: Device = None) -> Stream:
    """Stream 0 of the device."""
    _lazy_init()
    return Stream(
        stream_id=0,
        device_index=index_of(device),
        device_type=int(DeviceType.PrivateUse1),  # type: ignore[call-overload]
    )


def set_stream(stream: torch.Stream | None) -> None:
    """Make `stream` the current one of its device. None does nothing."""
    if stream is not None:
        torch.accelerator.set_stream(stream)


class StreamContext:
    """Context manager that makes `stream` and its device current. None does nothing."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stream is not None:
            self.stream.__exit__(kind, error, trace)


def stream(stream: torch.Stream | None) -> StreamContext:
    """A context manager that makes `stream` and its device current. None does nothing."""
    return StreamContext(stream)


@lru_cache(maxsize=256)
def _sleep_row(device: int, cycles: int) -> Any:
    from ..pricing import combined, remember

    chip = settings().chip
    seconds = cycles / float(chip.sync_clock_hz)
    price = replace(combined("trn::sleep", [], chip), seconds=seconds)
    return _C.add_graph_row(
        device=device,
        name=price.op,
        signature=f"({cycles} cycles)",
        key=(1 << 60) + cycles,
        device_ns=round(seconds * 1e9),
        dispatch_ns=-1,
        price_row=remember(price),
        blocks=False,
    )


def _sleep(cycles: int) -> None:
    """Occupy the current stream for `cycles` of the core's clock, as `torch.cuda._sleep` does."""
    device = current_device()
    if (cycles := int(cycles)) > 0:
        _C.launch_graph(device, _sleep_row(device, cycles), 1)
