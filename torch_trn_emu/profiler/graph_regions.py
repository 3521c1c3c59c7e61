"""Time by region of compiled graphs: each one's share of its graph's critical path."""

from dataclasses import dataclass

from .recording import Recording

__all__ = ["REGION_HEAD", "GraphRegionRow", "region_rows"]

REGION_HEAD = ("graph", "region", "launches", "time", "share of critical path")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRegionRow:
    """One region of a compiled graph: operators that run as one program.

    region    modules and operators
    launches  of the graph
    device_s  in all of them: the time in which it was the first region that was not done
    share     of the graph's critical path, 0 to 1; those of a graph add up to 1
    """

    graph: str
    region: str
    launches: int
    device_s: float
    share: float


def region_rows(recording: Recording) -> list[GraphRegionRow]:
    """A row for each region of each graph, in the order in which they run."""
    launches: dict[str, int] = {}
    found: dict[tuple[str, str], float] = {}
    for op, calls, price in recording.groups:
        if price.parts:
            launches[op] = launches.get(op, 0) + calls
        for region, part_s in price.parts:
            found[op, region] = found.get((op, region), 0.0) + calls * part_s
    whole = {op: sum(t for (graph, _), t in found.items() if graph == op) for op in launches}
    return [
        GraphRegionRow(
            graph=op,
            region=region,
            launches=launches[op],
            device_s=device_s,
            share=device_s / whole[op] if whole[op] else 0.0,
        )
        for (op, region), device_s in found.items()
    ]
