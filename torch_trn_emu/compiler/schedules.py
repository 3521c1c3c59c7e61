"""What a graph runs as one schedule, and how torch's caches keep it.

The price of a graph says how long it takes. Its programs are read again for the engine lanes of a
trace, also by a process that takes the graph from a cache: `Schedules` is pickled with the price,
compressed, and unpacked when it is first read.
"""

import copyreg
import io
import pickle
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..chip import Chip
from ..isa import Program
from ..isa.join import Part, join
from ..timing import Span
from ..timing.graph import graph_lanes

__all__ = ["Schedule", "Schedules"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Programs that run as one; tensors in `ordered` are written in place."""

    parts: tuple[Part, ...]
    ordered: frozenset[str]

    def program(self, chip: Chip) -> Program:
        """All parts as one program."""
        return join("window", self.parts, chip, self.ordered)

    def lanes(self, chip: Chip, limit: int) -> dict[str, tuple[Span, ...]]:
        """The spans of each queue, about `limit` of them or one for each part."""
        return graph_lanes(self.parts, chip, self.ordered, limit)


class Schedules:
    """The schedules of a graph, in order. Equal programs stay one object when they are pickled."""

    def __init__(self, found: tuple[Schedule, ...] | bytes = ()) -> None:
        self._found = found

    def __iter__(self) -> Iterator[Schedule]:
        found = self._found
        if isinstance(found, bytes):
            self._found = found = pickle.loads(zlib.decompress(found))
        return iter(found)

    def __reduce__(self) -> tuple[Any, ...]:
        packed = self._found if isinstance(self._found, bytes) else _packed(self._found)
        return Schedules, (packed,)


def _packed(found: tuple[Schedule, ...]) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = copyreg.dispatch_table | {MappingProxyType: _reduced}
    pickler.dump(found)
    return zlib.compress(file.getvalue())


def _reduced(mapping: Mapping[str, Any]) -> tuple[Any, ...]:
    return _fixed, (dict(mapping),)


def _fixed(values: dict[str, Any]) -> Mapping[str, Any]:
    """A mapping that cannot be changed: attributes of instructions, labels of buffers."""
    return MappingProxyType(values)
