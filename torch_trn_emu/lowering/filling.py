"""A constant written over a tensor in memory, from one tile of it."""

from math import ceil

from ..isa import Access, Affine, Buffer, Builder, itemsize, rows_of

__all__ = ["clear"]

P = 128
TILE_BYTES = 16 * 1024


def clear(b: Builder, out: Buffer, elements: int) -> None:
    """Zeros over the first `elements` of a tensor, on all partitions."""
    free = max(1, min(ceil(elements / P), int(TILE_BYTES / itemsize(out.dtype))))
    zeros = b.sbuf("zeros", free, out.dtype)
    b.emit("memset", rows_of(zeros, P, free), value=0.0)

    def over(offset: Affine, partitions: int, count: int) -> None:
        to = Access(buffer=out, offset=offset, pattern=((free, partitions), (1, count)))
        b.store(to, rows_of(zeros, partitions, count))

    for start, size in b.tiles(elements, P * free):
        lines, rest = divmod(size, free)
        if lines:
            over(start, lines, free)
        if rest:
            over(start + lines * free, 1, rest)
