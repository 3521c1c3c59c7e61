"""Addresses of one on-chip memory, per partition: a new buffer goes where the memory was left
longest ago. The twin of csrc/timing/arena.h.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .program import Buffer

__all__ = ["Arena", "Placed"]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a buffer lies, and whose memory it takes."""

    buffer: Buffer
    address: int
    of: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class _Held:
    start: int
    end: int
    part: int
    buffer: Buffer


class Arena:
    """`size` bytes of each partition."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: list[_Held] = []

    def place(self, part: int, buffers: Sequence[Buffer]) -> list[Placed]:
        """The buffers of a part, the largest first. What parts before hold may be taken."""
        before = list(self.held)
        largest_first = sorted(buffers, key=lambda b: -b.bytes_per_partition)
        placed = [self._place(part, b) for b in largest_first]
        if None in placed:
            return self._clear(part, before, largest_first)
        return [p for p in placed if p is not None]

    def _place(self, part: int, buffer: Buffer) -> Placed | None:
        found = []
        for start in {0, *(h.end for h in self.held)}:
            hit = self._hit(start, buffer)
            fits = start + buffer.bytes_per_partition <= self.size
            if fits and all(h.part != part for h in hit):
                found.append((max((h.part for h in hit), default=-1), start))
        if not found:
            return None
        start = min(found)[1]
        end = start + buffer.bytes_per_partition
        hit = self._hit(start, buffer)
        rest = [_Held(h.start, start, h.part, h.buffer) for h in hit if h.start < start]
        rest += [_Held(end, h.end, h.part, h.buffer) for h in hit if h.end > end]
        kept = [h for h in self.held if h not in hit]
        self.held = [*kept, *rest, _Held(start, end, part, buffer)]
        return Placed(buffer, start, tuple(dict.fromkeys(h.buffer for h in hit)))

    def _hit(self, start: int, buffer: Buffer) -> list[_Held]:
        end = start + buffer.bytes_per_partition
        return [h for h in self.held if h.start < end and h.end > start]

    def _clear(self, part: int, before: list[_Held], buffers: Sequence[Buffer]) -> list[Placed]:
        """Everything before is done first: what was left did not hold each in one piece."""
        of = tuple(dict.fromkeys(h.buffer for h in before))
        self.held, placed, start = [], [], 0
        for b in buffers:
            placed.append(Placed(b, start, of))
            self.held.append(_Held(start, start + b.bytes_per_partition, part, b))
            start += b.bytes_per_partition
        return placed
