"""Copies between strided places in HBM, without a way through SBUF, and constants written to them.

Where an index of the result comes from is described for each dimension as a list of segments: runs
of the source forwards, backwards or repeated, or a constant. Their combinations are boxes, and a
box is one transfer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod

from ..errors import Unimplemented
from ..isa import Affine, Buffer, Builder, Program, Role
from .limits import P

__all__ = ["Box", "Segment", "boxes_of", "relayout"]

MOST_BOXES = 256
RUN = 1024  # elements of a run that cores share (chosen)
CONSTANT = 2048  # elements of a run of the constant (chosen)


@dataclass(frozen=True, slots=True)
class Segment:
    """Result indices `to` + i * `to_step` are source indices `start` + i * `step`, i < count.

    `start` is None where the result is the constant.
    """

    to: int
    count: int
    start: int | None
    step: int = 1
    to_step: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """counts, and offsets and strides on both sides; `source` is "" for the constant."""

    source: str
    counts: tuple[int, ...]
    to: int
    to_strides: tuple[int, ...]
    start: int = 0
    strides: tuple[int, ...] = ()


def boxes_of(
    source: str,
    strides: Sequence[int],
    to_strides: Sequence[int],
    segments: Sequence[Sequence[Segment]],
) -> list[Box]:
    """The boxes of all combinations of segments, one list of them for each dimension."""
    if prod(map(len, segments)) > MOST_BOXES:
        raise Unimplemented(
            f"a copy in more than {MOST_BOXES} boxes: kernels/strided_copy.py. "
            "It is priced by its class."
        )
    made = []
    for chosen in product(*segments):
        counts = tuple(s.count for s in chosen)
        if not prod(counts):
            continue
        constant = any(s.start is None for s in chosen)
        starts = zip(chosen, strides, strict=True)
        made.append(
            Box(
                source="" if constant else source,
                counts=counts,
                to=sum(s.to * t for s, t in zip(chosen, to_strides, strict=True)),
                to_strides=tuple(s.to_step * t for s, t in zip(chosen, to_strides, strict=True)),
                start=0 if constant else sum((s.start or 0) * n for s, n in starts),
                strides=tuple(s.step * n for s, n in zip(chosen, strides, strict=True)),
            )
        )
    return made


def relayout(
    name: str,
    sources: Mapping[str, tuple[int, str]],
    out: tuple[int, str],
    boxes: Sequence[Box],
    *,
    cores: int = 1,
    constant: float = 0.0,
) -> Program:
    """`boxes` from sources to the result, each (elements, dtype); a core has its part of each."""
    b = Builder(name, cores=cores)
    hbm = {n: b.hbm(n, (size,), dtype, Role.INPUT) for n, (size, dtype) in sources.items()}
    result = b.hbm("out", (out[0],), out[1], Role.OUTPUT)
    fills = [box for box in boxes if not box.source]
    if fills:
        tile = b.sbuf("constant", CONSTANT, out[1])
        whole = tile.box((CONSTANT, P), (1, CONSTANT))
        b.emit("memset", whole, value=constant)
    for number, whole_box in enumerate(boxes):
        box = _share(whole_box, cores)
        if not box.source:
            _fill(b, tile, result, box)
            continue
        to = result.box(*_joined(box, box.to_strides)[0], at=box.to)
        pattern = _joined(box, box.to_strides)[1]
        source = hbm[box.source].box(*pattern, at=box.start)
        b.emit("dma_copy", to, source, queue=f"move {number % 4}")
    return b.build()


def _share(box: Box, cores: int) -> Box:
    """One core's part: of the dimension that divides best, the first of equals."""
    long = [d for d, count in enumerate(box.counts) if count >= cores]
    if cores == 1 or not long:
        return box
    last = len(box.counts) - 1
    if box.counts[-1] < RUN and box.to_strides[-1] == 1 and box.strides[-1:] == (1,):
        long = [d for d in long if d < last] or long  # short runs stay whole
    d = min(long, key=lambda d: ceil(box.counts[d] / cores) / box.counts[d])
    counts = (*box.counts[:d], ceil(box.counts[d] / cores), *box.counts[d + 1 :])
    return replace(box, counts=counts)


Pattern = tuple[tuple[int, int], ...]


def _joined(box: Box, to_strides: Sequence[int]) -> tuple[Pattern, Pattern]:
    """Patterns of the result and of the source, dimensions that go on on both sides as one."""
    to: list[tuple[int, int]] = []
    source: list[tuple[int, int]] = []
    for count, a, c in zip(box.counts, to_strides, box.strides, strict=True):
        if count == 1:
            continue
        if to and to[-1][0] == a * count and source[-1][0] == c * count:
            to[-1], source[-1] = (a, to[-1][1] * count), (c, source[-1][1] * count)
        else:
            to.append((a, count))
            source.append((c, count))
    pad = [(1, 1)] * max(0, 2 - len(to))
    return (*pad, *to), (*pad, *source)


def _fill(b: Builder, tile: Buffer, result: Buffer, box: Box) -> None:
    """The constant over a box: rows of its last two dimensions at a time."""
    plain = Box(
        source="", counts=box.counts, to=box.to, to_strides=box.to_strides, strides=box.to_strides
    )
    pattern = _joined(plain, box.to_strides)[0]
    *outer, (row_step, rows), (step, run) = pattern

    def nested(level: int, offset: Affine) -> None:
        if level < len(outer):
            with b.loop(outer[level][1]) as i:
                nested(level + 1, offset + i * outer[level][0])
            return
        for r0, some in b.tiles(rows, P):
            for c0, count in b.tiles(run, CONSTANT):
                to = result.box(
                    (row_step, some), (step, count), at=offset + r0 * row_step + c0 * step
                )
                b.store(to, tile.box((CONSTANT, some), (1, count)))

    if rows == 1 and not outer and step == 1 and run >= P:  # one long run, on all partitions
        width = min(CONSTANT, run // P)
        whole = run // (P * width) * (P * width)
        for at, _ in b.tiles(whole, P * width):
            to = result.box((width, P), (1, width), at=at + box.to)
            b.store(to, tile.box((CONSTANT, P), (1, width)))
        box_left, run = box.to + whole, run - whole
        if run:
            nested(0, Affine(box_left))
        return
    nested(0, Affine(box.to))
