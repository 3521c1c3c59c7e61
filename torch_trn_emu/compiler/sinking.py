"""Values of a region made again by the region that alone reads them, where that saves their store.

A group norm subtracts and multiplies by a group's moments, then by a channel's parameters: the rows
of the two regions differ, so that they stay apart. What the first makes of its operand, element by
element, the second makes itself, of the same operand and of the moments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch.fx import Node

from ..isa import itemsize
from ..kernels.rows.values import JOINED, Kind, RowStep
from .nodes import users_of
from .region import Region, Value

__all__ = ["sink"]

MOST_AGAIN = 4  # instructions that are made again (chosen)


def sink(regions: Sequence[Region], home: dict[Node, Region], most_steps: int) -> None:
    """Move nodes from regions over rows to those that read their results, in place."""
    for region in regions:
        if region.kind != "rows" or not region.nodes:
            continue
        for key, value in list(region.inputs.items()):
            source = _maker(value.node, regions, region)
            if source is not None and value.kind is Kind.FULL and key == value.node:
                _sink_value(source, region, key, home, most_steps)


def _maker(node: str, regions: Sequence[Region], reader: Region) -> Region | None:
    """The region over rows that makes a value, if the reader's rows are parts of its rows."""
    for region in regions:
        if region is not reader and any(n.name == node for n in region.nodes):
            alike = region.kind == "rows" and region.elements == reader.elements
            nested = region.columns and reader.columns and region.columns % reader.columns == 0
            return region if alike and nested and not region.draws else None
    return None


def _sink_value(
    source: Region, reader: Region, key: str, home: dict[Node, Region], most_steps: int
) -> None:
    made = {s.name: s for s in source.steps}
    again = _again(source, made, source.alias.get(key, key))
    if again is None or len(again) > MOST_AGAIN or len(again) + len(reader.steps) > most_steps:
        return
    own = {s.name for s in again}
    reads = [r for r in dict.fromkeys(r for s in again for r in s.reads) if r not in own]
    whole = [r for r in reads if source.made[r] is Kind.FULL]
    columns = [r for r in reads if source.made[r] is Kind.COLUMN]
    if len(whole) != 1 or len(whole) + len(columns) != len(reads):
        return
    (given,) = whole
    if itemsize(source.inputs[given].dtype) > itemsize(reader.inputs[key].dtype):
        return
    moved = _moved(source, reader, own, key, home)
    if moved is None or reader.made.get(given, Kind.FULL) is not Kind.FULL:
        return
    _move(source, reader, key, again, moved, home)
    reader.inputs.setdefault(given, source.inputs[given])
    reader.made[given] = Kind.FULL
    for name in columns:
        reader.inputs[name], reader.made[name] = _column(source, name), Kind.COLUMN


def _column(source: Region, name: str) -> Value:
    """Values of rows that a region reads or makes; one that no node is stored by its own name."""
    if name in source.inputs:
        return source.inputs[name]
    rows = source.elements // (source.columns or 1)
    node = next((n.name for n in source.nodes if source.alias.get(n.name) == name), "")
    if node:
        return Value(node, "float32", Kind.COLUMN, rows)
    source.kept[name] = Value(name, "float32", Kind.COLUMN, rows)
    return source.kept[name]


def _again(source: Region, made: Mapping[str, RowStep], name: str) -> list[RowStep] | None:
    """The steps over elements that make a value of what was loaded and of values of rows."""
    found: dict[str, RowStep] = {}
    pending = [name]
    while pending:
        one = made.get(pending.pop())
        if one is None or one.kind is not Kind.FULL:
            continue
        if one.opcode in ("rng", JOINED) or len(found) > MOST_AGAIN:
            return None
        found[one.name] = one
        pending += one.reads
    return [s for s in source.steps if s.name in found] or None


def _moved(
    source: Region, reader: Region, again: set[str], key: str, home: Mapping[Node, Region]
) -> list[Node] | None:
    """The nodes that nothing but the reader needs any more; None if others read the value."""
    moved: list[Node] = []
    for node in reversed(source.nodes):
        if source.alias.get(node.name) not in again:
            continue
        alone = all(u in moved or home.get(u) is reader for u in users_of(node))
        if alone:
            moved.append(node)
        elif node.name == key:
            return None
    return moved[::-1] if any(node.name == key for node in moved) else None


def _move(
    source: Region, reader: Region, key: str, again: Sequence[RowStep], moved: Sequence[Node],
    home: dict[Node, Region],
) -> None:  # fmt: skip
    last = source.alias[key]
    reader.steps = [
        *again,
        *(replace(s, reads=tuple(last if r == key else r for r in s.reads)) for s in reader.steps),
    ]
    reader.alias = {k: last if v == key else v for k, v in reader.alias.items()}
    del reader.inputs[key], reader.made[key]
    reader.made |= dict.fromkeys((s.name for s in again), Kind.FULL)
    calls = dict(zip(source.nodes, source.calls, strict=True))
    for node in moved:
        reader.alias[node.name] = source.alias.pop(node.name)
        home[node] = reader
    reader.nodes = [*moved, *reader.nodes]
    reader.calls = [*(calls[n] for n in moved), *reader.calls]
    source.nodes = [n for n in source.nodes if n not in moved]
    source.calls = [calls[n] for n in source.nodes]
    named = set(source.alias.values())
    read = {r for s in source.steps for r in s.reads}
    for one in reversed(again):
        if one.name not in read and one.name not in named:
            source.steps = [s for s in source.steps if s is not one]
            del source.made[one.name]
            read = {r for s in source.steps for r in s.reads}
