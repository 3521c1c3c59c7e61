"""Tensors seen as [partition, outer, inner]: channels or groups on the partitions, runs inside.

A batch norm has its channels on partitions, images as the outer and pixels as the inner dimension;
a group norm has groups on partitions and a group's channels as the outer dimension.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from ..isa import Access, Affine, Buffer, Builder
from .limits import P

__all__ = ["Chunk", "Planes", "several"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Part of a partition's elements: `outer` from `o0`, `inner` from `s0`."""

    number: Affine
    o0: Affine
    outer: int
    s0: Affine
    s_number: Affine
    inner: int

    @property
    def elements(self) -> int:
        return self.outer * self.inner


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """`repeats` x `rows` partitions of `outer` x `inner` elements, and their distances in memory.

    A partition's number is repeat * rows + row: with `repeats`, rows carry the same parameters.
    """

    rows: int
    outer: int
    inner: int
    row_stride: int
    outer_stride: int
    repeats: int = 1
    wide: int = 4096  # elements of a partition that are loaded together

    @property
    def whole(self) -> int:
        """Elements of the tensor."""
        return self.repeats * self.rows * self.outer * self.inner

    @property
    def per_row(self) -> int:
        return self.outer * self.inner

    @property
    def inner_chunks(self) -> int:
        return ceil(self.inner / self.wide)

    @property
    def width(self) -> int:
        """Elements of the longest chunk."""
        if self.inner_chunks > 1:
            return self.wide
        return min(self.outer, max(1, self.wide // self.inner)) * self.inner

    @property
    def chunks(self) -> int:
        if self.inner_chunks > 1:
            return self.outer * self.inner_chunks
        return ceil(self.outer * self.inner / self.width)

    def over_chunks(self, b: Builder) -> Iterator[Chunk]:
        """All of a partition's elements; the body of `for` is emitted for each kind of chunk."""
        none = Affine()
        if self.inner_chunks == 1:
            for number, o0, outer in b.parts(self.outer, self.width // self.inner):
                yield Chunk(
                    number=number, o0=o0, outer=outer, s0=none, s_number=none, inner=self.inner
                )
            return
        with b.loop(self.outer) as o:
            for s, s0, inner in b.parts(self.inner, self.wide):
                number = o * self.inner_chunks + s
                yield Chunk(number=number, o0=o, outer=1, s0=s0, s_number=s, inner=inner)

    def over_rows(self, b: Builder) -> Iterator[tuple[Affine, Affine, int, int]]:
        """(first partition's number, first row, rows, repeats) of tiles of at most 128."""
        if self.rows <= P:
            for r0, repeats in b.tiles(self.repeats, P // self.rows):
                yield r0 * self.rows, Affine(), self.rows, repeats
            return
        with b.loop(self.repeats) as r:
            for row, rows in b.tiles(self.rows, P):
                yield r * self.rows + row, row, rows, 1

    def box(self, hbm: Buffer, first: Affine, partitions: int, chunk: Chunk) -> Access:
        """A chunk of partitions first .. in memory."""
        at = first * self.row_stride + chunk.o0 * self.outer_stride + chunk.s0
        pattern = ((self.row_stride, partitions), (self.outer_stride, chunk.outer))
        return hbm.box(*pattern, (1, chunk.inner), at=at)


def several(pattern: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A pattern without what is there once."""
    return [p for p in pattern if p[1] > 1]
