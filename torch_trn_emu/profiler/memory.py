"""HBM over simulated time, by what it holds: a replay of the blocks taken and given back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .hooks import CATEGORIES, PHASES

__all__ = ["Block", "MemoryUse", "replay"]

_OF_PHASE = tuple({"forward": 3, "backward": 3}.get(phase, 4) for phase in PHASES)
_OTHER = CATEGORIES.index("other")


@dataclass(frozen=True, slots=True)
class Block:
    """One event: taken (nbytes > 0), given back (nbytes < 0), or marked as a category (0)."""

    address: int
    nbytes: int
    launches: int  # recorded before
    device: int
    kind: int  # when taken: a phase; when marked: a category
    size: int  # when marked

    def after(self, launches: int) -> "Block":
        """The same event with so many launches before the first one."""
        return replace(self, launches=self.launches + launches)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """HBM of one device, in bytes.

    samples  the most during each launch that changed something: (launches before, bytes by
             CATEGORIES)
    peak     bytes by category when the most was allocated
    """

    capacity_bytes: int
    samples: tuple[tuple[int, tuple[int, ...]], ...]
    peak: Mapping[str, int]

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())


@dataclass
class _Life:
    nbytes: int
    category: int
    before: bool = False  # alive when the recording began


@dataclass
class _Replay:
    """Who holds what; marks come late, so bytes are summed in a second pass."""

    lives: list[_Life] = field(default_factory=list)
    live: dict[int, int] = field(default_factory=dict)  # address -> life
    changes: list[tuple[int, int, int]] = field(default_factory=list)  # launches, life, sign

    def read(self, event: Block) -> None:
        known = self.live.get(event.address)
        if event.nbytes > 0:
            self._begin(event, _Life(event.nbytes, _OF_PHASE[event.kind]))
            self.changes.append((event.launches, self.live[event.address], 1))
        elif event.nbytes == 0:
            if known is None:
                self._begin(event, _Life(event.size, event.kind, before=True))
            else:
                self.lives[known].category = event.kind
        else:
            if known is None:
                self._begin(event, _Life(-event.nbytes, _OTHER, before=True))
            self.changes.append((event.launches, self.live.pop(event.address), -1))

    def _begin(self, event: Block, life: _Life) -> None:
        self.lives.append(life)
        self.live[event.address] = len(self.lives) - 1

    def samples(self, allocated_bytes: int) -> list[tuple[int, tuple[int, ...]]]:
        now = [0] * len(CATEGORIES)
        for life in self.lives:
            now[life.category] += life.nbytes * life.before
        now[_OTHER] += allocated_bytes - sum(now)  # alive from the start on and never named
        out = [(self.changes[0][0] if self.changes else 0, tuple(now))]
        for launches, number, sign in self.changes:
            now[self.lives[number].category] += sign * self.lives[number].nbytes
            out.append((launches, tuple(now)))
        return out


def replay(regions: Iterable[tuple[int, Iterable[Block]]], capacity_bytes: int) -> MemoryUse:
    """The use of one device's HBM from what each region saw: (bytes taken before, events).

    A block's category is what a mark says while it lives, also one that comes later. Without a mark
    it is `activations` if forward or backward made it, else `other`.
    """
    peak: tuple[int, ...] = (0,) * len(CATEGORIES)
    most: dict[int, tuple[int, ...]] = {}
    for allocated_bytes, events in regions:
        run = _Replay()
        for event in events:
            run.read(event)
        for launches, use in run.samples(allocated_bytes):
            peak = max(peak, use, key=sum)
            most[launches] = max(most.get(launches, use), use, key=sum)
    return MemoryUse(
        capacity_bytes=capacity_bytes,
        samples=tuple(most.items()),
        peak=dict(zip(CATEGORIES, peak, strict=True)),
    )
