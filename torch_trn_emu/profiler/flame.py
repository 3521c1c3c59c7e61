"""The flame graph of modules: a box for each path, as wide as its share of the core time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

from .modules import ModuleRow
from .summary import seconds

__all__ = ["Box", "flame"]

_COLORS = ("#9ecae9", "#ffbf79", "#88d27a", "#f2cf5b", "#83bcb6", "#ff9d98", "#d6a5c9", "#d8b5a5")
_NARROWEST = 5e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """begin and size are shares of the core time, 0 to 1."""

    name: str
    title: str
    begin: float
    size: float
    depth: int
    color: str


def flame(rows: Sequence[ModuleRow]) -> list[Box]:
    """Boxes from above to below; modules of less than 0.05 % of the time are left out."""
    whole = sum(row.total_s for row in rows if "." not in row.module) or 1.0
    below: dict[str, list[ModuleRow]] = {}
    for row in rows:
        above, _, _ = row.module.rpartition(".")
        below.setdefault(above if row.module else "", []).append(row)

    def boxes(path: str, begin: float, depth: int) -> Iterator[Box]:
        for row in below.get(path, ()):
            if not row.module and depth:
                continue
            size = row.total_s / whole
            if size >= _NARROWEST:
                name = row.module.rpartition(".")[2] or "(outside modules)"
                title = (
                    f"{row.module or name}: {seconds(row.total_s)}, {size:.1%}; "
                    f"forward {seconds(row.forward_s)}, backward {seconds(row.backward_s)}, "
                    f"itself {seconds(row.own_s)}, {row.calls:,} launches"
                )
                color = _COLORS[crc32(name.encode()) % len(_COLORS)]
                yield Box(name=name, title=title, begin=begin, size=size, depth=depth, color=color)
                if row.module:
                    yield from boxes(row.module, begin, depth + 1)
            begin += size

    return list(boxes("", 0.0, 0))
