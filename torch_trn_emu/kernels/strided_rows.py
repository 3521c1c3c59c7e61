"""Copies of short strided runs by way of SBUF: whole rows are loaded and stored, engines move what
lies between.

A DMA of single elements needs a descriptor for each. Here the boxes of a copy are the same in every
row of the result, and each source has a row of its own for each: several rows lie on a partition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

from ..isa import Access, Affine, Buffer, Builder, Engine, Program, Role, itemsize
from .limits import SLOTS, P
from .runs import runs
from .strided_copy import Box

__all__ = ["OLD", "Rows", "rows_of_boxes", "strided_rows"]

ROW_BYTES = 64 * 1024  # of a row, of all sources and the result, at most (chosen)
TILE_BYTES = 24 * 1024  # of a partition, for several rows (chosen)
SHORT = 128  # bytes of a run that DMA moves well enough (chosen)
MOST_BOXES, DEEPEST = 16, 3  # instructions of a row, and dimensions of their patterns (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is the same in each of `count` rows.

    pitch    elements from a row of the result to the next, of which the first `stored` are stored
    pitches  the same of each source, and `starts` where its first row begins, `reach` where the
             last element that a row needs ends
    boxes    without the dimensions that are rows, from a row's beginning
    """

    count: int
    pitch: int
    stored: int
    pitches: Mapping[str, int]
    starts: Mapping[str, int]
    reach: Mapping[str, int]
    boxes: Sequence[Box]


OLD = "old"  # the source that is what the result held before


def rows_of_boxes(
    boxes: Sequence[Box], elements: int, dtype: str, *, keeps: bool = False
) -> Rows | None:
    """The boxes as rows, as short as they may be; None where rows are no help.

    keeps  what lies between the boxes in the result stays as it was
    """
    ranks = {len(box.counts) for box in boxes}
    size = itemsize(dtype)
    if len(ranks) != 1 or len(boxes) > MOST_BOXES or not any(box.source for box in boxes):
        return None
    if min(_run(box) for box in boxes) * size >= SHORT:
        return None
    for d in range(ranks.pop(), 0, -1):
        found = _rows(boxes, d, elements)
        if found and keeps:
            found = _over_old(found)
        if found and size * (found.pitch + sum(found.pitches.values())) <= ROW_BYTES:
            return found
    return None


def _over_old(rows: Rows) -> Rows:
    """The rows, written over those that the result had."""
    run = (rows.stored,)
    whole = Box(source=OLD, counts=run, to=0, to_strides=(1,), strides=(1,))
    return replace(
        rows,
        pitches={**rows.pitches, OLD: rows.pitch},
        starts={**rows.starts, OLD: 0},
        reach={**rows.reach, OLD: rows.stored},
        boxes=[whole, *rows.boxes],
    )


def _run(box: Box) -> int:
    """Elements that lie together on both sides."""
    run = 1
    for count, to, step in zip(
        reversed(box.counts), reversed(box.to_strides), reversed(box.strides), strict=True
    ):
        if count == 1:
            continue
        if to != run or (box.source and step != run):
            break
        run *= count
    return run


def _pitch(counts: Sequence[int], strides: Sequence[int]) -> int | None:
    """From one of all `counts` to the next, if that is the same everywhere."""
    pitch: int | None = None
    many = 1
    for count, stride in zip(reversed(counts), reversed(strides), strict=True):
        if count == 1:
            continue
        if pitch is None:
            pitch = stride
        elif stride != pitch * many:
            return None
        many *= count
    return pitch if pitch and pitch > 0 else None


def _rows(boxes: Sequence[Box], d: int, elements: int) -> Rows | None:
    """The first `d` dimensions as rows."""
    outer = {box.counts[:d] for box in boxes}
    steps = {_pitch(box.counts[:d], box.to_strides[:d]) for box in boxes}
    pitch = steps.pop()
    if len(outer) != 1 or steps or not pitch:
        return None
    count, last = prod(outer.pop()), 0
    pitches: dict[str, int] = {}
    starts: dict[str, int] = {}
    reach: dict[str, int] = {}
    for box in boxes:
        counts, to_strides, strides = box.counts[d:], box.to_strides[d:], box.strides[d:]
        last = max(last, _last(counts, to_strides, box.to))
        if last >= pitch or len(counts) > DEEPEST:
            return None
        if min((*to_strides, *strides), default=0) < 0:
            return None
        if not box.source:
            continue
        step = _pitch(box.counts[:d], box.strides[:d])
        if not step or pitches.setdefault(box.source, step) != step:
            return None
        starts[box.source] = min(starts.get(box.source, box.start), box.start)
        end = _last(counts, strides, box.start) + 1
        reach[box.source] = max(reach.get(box.source, 0), end)
    stored = pitch if count * pitch == elements else last + 1
    if (count - 1) * pitch + stored != elements or any(
        reach[s] - starts[s] > pitches[s] for s in pitches
    ):
        return None
    within = [
        Box(source=b.source, counts=b.counts[d:], to=b.to, to_strides=b.to_strides[d:],
            start=b.start - starts.get(b.source, 0), strides=b.strides[d:])
        for b in boxes
    ]  # fmt: skip
    ends = {s: reach[s] - starts[s] for s in reach}
    return Rows(
        count=count,
        pitch=pitch,
        stored=stored,
        pitches=pitches,
        starts=starts,
        reach=ends,
        boxes=within,
    )


def _last(counts: Sequence[int], strides: Sequence[int], first: int) -> int:
    return first + sum((n - 1) * s for n, s in zip(counts, strides, strict=True))


def strided_rows(
    name: str,
    rows: Rows,
    sources: Mapping[str, int],
    dtype: str,
    *,
    cores: int = 1,
    constant: float = 0.0,
) -> Program:
    """The rows of the result, of sources of so many elements; a core has its share of rows."""
    b = Builder(name, cores=cores)
    count = ceil(rows.count / cores)
    hbm = {n: b.hbm(n, (_share(rows, n, total, count),), dtype, Role.INPUT)
           for n, total in sources.items()}  # fmt: skip
    out = b.hbm("out", ((count - 1) * rows.pitch + rows.stored,), dtype, Role.OUTPUT)
    widest = max(rows.pitch, *rows.pitches.values())
    fits = int(TILE_BYTES / (len(sources) + 1) / itemsize(dtype) / widest)
    group = max(1, min(fits, ceil(count / P)))
    tiles = {n: b.sbuf(f"{n} rows", group * rows.pitches[n], dtype, slots=SLOTS) for n in sources}
    made = b.sbuf("rows", group * rows.pitch, dtype, slots=SLOTS)
    for first, some, together in runs(b, count, group):
        b.fresh(made, *tiles.values())
        for n, tile in tiles.items():
            pitch = rows.pitches[n]
            length = (together - 1) * pitch + rows.reach[n]
            at = first * pitch + rows.starts[n]
            source = hbm[n].box((group * pitch, some), (1, length), at=at)
            b.load(tile.box((tile.row_elements, some), (1, length)), source)
        for number, box in enumerate(rows.boxes):
            _move(b, rows, box, (tiles, made), (some, together), number, constant)
        length = (together - 1) * rows.pitch + rows.stored
        to = out.box((group * rows.pitch, some), (1, length), at=first * rows.pitch)
        b.store(to, made.box((made.row_elements, some), (1, length)))
    return b.build()


def _share(rows: Rows, name: str, total: int, count: int) -> int:
    """Elements of a source that a core's rows need."""
    return min(total, (count - 1) * rows.pitches[name] + rows.starts[name] + rows.reach[name])


def _move(
    b: Builder,
    rows: Rows,
    box: Box,
    tiles: tuple[Mapping[str, Buffer], Buffer],
    size: tuple[int, int],
    number: int,
    constant: float,
) -> None:
    """A box of all rows of a tile."""
    sources, made = tiles
    to = _there(made, rows.pitch, box.counts, box.to_strides, box.to, size)
    if not box.source:
        b.emit("memset", to, value=constant)
        return
    source = _there(
        sources[box.source], rows.pitches[box.source], box.counts, box.strides, box.start, size
    )
    engine = Engine.SCALAR if number % 2 else Engine.VECTOR
    b.emit("tensor_copy", to, source, engine=engine)


def _there(
    tile: Buffer,
    pitch: int,
    counts: Sequence[int],
    strides: Sequence[int],
    first: int,
    size: tuple[int, int],
) -> Access:
    some, together = size
    inner = [(s, n) for n, s in zip(counts, strides, strict=True) if n > 1]
    pattern = ((tile.row_elements, some), (pitch, together), *inner)
    return tile.box(*pattern, at=Affine(first))
