"""One long run of elements cut over the partitions, and a constant written over it."""

from collections.abc import Iterator
from math import ceil

from ..isa import Access, Affine, Buffer, Builder, itemsize
from .limits import TILE_BYTES, P

__all__ = ["clear", "run_of", "runs", "spread_runs"]


def runs(b: Builder, count: int, together: int) -> Iterator[tuple[Affine, int, int]]:
    """(first element, partitions, elements of each), `together` of them on all but the last."""
    for start, some in b.tiles(count, P * together):
        lines, rest = divmod(some, together)
        if lines:
            yield start, lines, together
        if rest:
            yield start + lines * together, 1, rest


def spread_runs(b: Builder, count: int, together: int) -> Iterator[tuple[Affine, int, int]]:
    """The same in any order: what is left over lies on all partitions, and the few elements that
    then remain come first, so that their latency is hidden.
    """
    rest = count % (P * together)
    each, few = divmod(rest, P)
    if few:
        yield Affine(count - few), 1, few
    if each:
        yield Affine(count - rest), P, each
    for start, _ in b.tiles(count - rest, P * together):
        yield start, P, together


def run_of(hbm: Buffer, at: Affine, rows: int, count: int, pitch: int) -> Access:
    """`count` elements for each of `rows` partitions, `pitch` apart."""
    return hbm.box((pitch, rows), (1, count), at=at)


def clear(b: Builder, out: Buffer, elements: int) -> None:
    """Zeros over the first `elements` of a tensor, on all partitions."""
    free = max(1, min(ceil(elements / P), int(TILE_BYTES / itemsize(out.dtype))))
    zeros = b.sbuf("zeros", free, out.dtype)
    b.emit("memset", zeros.rows(P, free), value=0.0)
    for at, rows, count in runs(b, elements, free):
        b.store(run_of(out, at, rows, count, free), zeros.rows(rows, count))
