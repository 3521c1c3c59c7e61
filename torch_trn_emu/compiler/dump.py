"""Writes what was made of a graph into a folder, one folder for each graph: `TRN_EMU_DUMP=dir`.

graph.txt     the graph of AOTAutograd
regions.txt   its regions: operators, modules, lines of source, edges
program.txt   the engine programs of its windows
schedule.txt  when each region runs, and its share of the critical path
counters.json the folded counters of one launch
graph.svg     the regions and the tensors between them
"""

import json
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

from torch.fx import GraphModule

from ..calls import Target
from ..isa import dump
from .graph_price import GraphPrice, Work
from .region import Region
from .windows import windows

__all__ = ["write_dump"]


def write_dump(
    folder: str, gm: GraphModule, work: Work, priced: GraphPrice, target: Target
) -> Path:
    """Write the files of one graph; returns their folder."""
    into = Path(folder) / priced.name.replace(" ", "_").replace("/", "_")
    into.mkdir(parents=True, exist_ok=True)
    cut = windows(work.parts)
    texts = {
        "graph.txt": gm.print_readable(print_output=False),
        "regions.txt": "\n".join(_regions(priced)),
        "program.txt": "\n\n".join(dump(w.program(target)) for w in cut if not w.priced),
        "schedule.txt": "\n".join(_schedule(priced)),
        "counters.json": json.dumps(dict(priced.price.totals), indent=2, sort_keys=True),
        "graph.svg": "\n".join(_picture(work.regions)),
    }
    for name, text in texts.items():
        (into / name).write_text(text + "\n")
    return into


def _regions(priced: GraphPrice) -> Iterator[str]:
    for row in priced.regions:
        yield f"{row.name} [{row.kind}] reads {row.read_bytes} B, leaves {row.written_bytes} B"
        yield from (f"  {operator}" for operator in row.operators)
        yield from (f"  module {module}" for module in row.modules)
        yield from (f"  {source}" for source in row.sources)


def _schedule(priced: GraphPrice) -> Iterator[str]:
    yield "start_us  end_us  added_us  region"
    for row in priced.regions:
        times = (row.start_s, row.end_s, row.added_s)
        yield "  ".join([*(f"{t * 1e6:.2f}" for t in times), row.name])


# --- the picture ----------------------------------------------------------------------------------

_COLOURS = {"product": "#cfe2ff", "rows": "#d9f2d9", "single": "#f2e6d9"}
_WIDTH, _HEIGHT, _GAP = 260, 34, 26


def _picture(regions: list[Region]) -> Iterator[str]:
    """Boxes in levels from top to bottom; a line is a tensor through HBM."""
    level: dict[int, int] = {}
    placed: dict[int, tuple[int, int]] = {}
    used: Counter[int] = Counter()
    for r in regions:  # in an order in which they run
        row = level[r.number] = 1 + max((level[n] for n in r.above if n in level), default=-1)
        placed[r.number] = (used[row] * (_WIDTH + _GAP), row * (_HEIGHT + _GAP))
        used[row] += 1
    width = max(used.values(), default=1) * (_WIDTH + _GAP)
    height = (max(level.values(), default=0) + 1) * (_HEIGHT + _GAP)
    yield f'<svg xmlns="{_NAMESPACE}" width="{width}" height="{height}" font-family="monospace">'
    makers = {node.name: r.number for r in regions for node in r.nodes}
    for r in regions:
        for maker in sorted({makers[v.node] for v in r.inputs.values() if v.node in makers}):
            yield _line(placed[maker], placed[r.number])
    for r in regions:
        yield _box(placed[r.number], r)
    yield "</svg>"


_NAMESPACE = "http" + "://www.w3.org/2000/svg"  # a name, not a link


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + _WIDTH // 2, start[1] + _HEIGHT, end[0] + _WIDTH // 2, end[1]
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#999"/>'


def _box(at: tuple[int, int], region: Region) -> str:
    x, y = at
    label = escape(region.name if len(region.name) < 34 else region.name[:31] + "...")
    return (
        f"<g><title>{escape(region.name)}</title>"
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
        f'fill="{_COLOURS[region.kind]}" stroke="#666"/>'
        f'<text x="{x + 8}" y="{y + 21}" font-size="12">{label}</text></g>'
    )
