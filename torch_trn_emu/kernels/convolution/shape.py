"""What a convolution computes, and how its contraction is cut for the array.

Where channels fill less than half of the array, rows of the filter share it. Dimensions are depth,
height and width; those a convolution lacks have size 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

from ...isa import Access, Affine, Buffer, Builder
from ..limits import P
from ..planes import several
from ..windows import Axis, Strip

__all__ = ["Convolution", "Part", "Volume", "Work", "all_work", "evacuate", "parts_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """Sizes of one core's share. `channels` and `filters` are those of one group.

    dtype               of the tensors; `compute` is that of the array
    weights_transposed  they come as [channels, taps, filters], as the array wants them
    share               lets rows of the filter share the array where channels are few
    """

    batch: int
    channels: int
    filters: int
    axes: tuple[Axis, Axis, Axis]
    groups: int = 1
    bias: str = ""
    dtype: str = "float32"
    compute: str = "float32"
    weights_transposed: bool = False
    share: bool = True
    flops: float = 0.0

    @property
    def sizes(self) -> tuple[int, int, int]:
        d, h, w = (a.size for a in self.axes)
        return d, h, w

    @property
    def outs(self) -> tuple[int, int, int]:
        d, h, w = (a.out for a in self.axes)
        return d, h, w

    @property
    def kernel(self) -> tuple[int, int, int]:
        d, h, w = (a.kernel for a in self.axes)
        return d, h, w

    @property
    def taps(self) -> int:
        return prod(self.kernel)


@dataclass(frozen=True, slots=True)
class Volume:
    """A tensor of images in memory: `channels` of each image, of [depth, height, width]."""

    hbm: Buffer
    channels: int
    shape: tuple[int, int, int]

    def rows(
        self, channel: Affine, size: int, images: int, deep: tuple[int, int],
        high: tuple[Affine, int], *, wide: tuple[int, int] = (0, 0), step: int = 1,
        apart: bool = False,
    ) -> Access:  # fmt: skip
        """[size P, images, depths, rows, columns], each (first, how many); all columns by default.

        channel  the first one; those of the images before count, too
        step     rows from one to the next
        apart    rows are not one run: the other side of the transfer has something between them
        """
        (_, height, width), volume = self.shape, prod(self.shape)
        x, count = wide if wide[1] else (0, width)
        outer = [(self.channels * volume, images), (height * width, deep[1])]
        lines = several([(step * width, high[1])])
        if count == width and step == 1 and not apart:
            lines, count = [], high[1] * width
        at = channel * volume + high[0] * width + (deep[0] * height * width + x)
        return self.hbm.box((volume, size), *several(outer), *lines, (1, count), at=at)


class Work(NamedTuple):
    """`tiles` tiles of a strip, from its tile `start` on, whose operand is loaded together."""

    group: Affine
    n0: Affine  # the first of the images
    images: int
    deep: Strip
    high: Strip
    start: Affine
    tiles: int

    def put(
        self, b: Builder, result: Buffer, out: Volume, channel: Affine, size: int, wide: Strip,
        j: Affine,
    ) -> None:  # fmt: skip
        """Stores tile j, [size P, images, rows, columns]; `channel` counts in one image."""
        rows, count = self.high.count, wide.count
        lines = [(1, rows * count)]
        if count != out.shape[2]:
            lines = [*several([(count, rows)]), (1, count)]
        kept = result.lanes(size, *several([(rows * count, self.images)]), *lines)
        high = (self.start + j) * rows + self.high.first, rows
        first, deep = self.n0 * out.channels + channel, (self.deep.first, 1)
        to = out.rows(first, size, self.images, deep, high, wide=(wide.first, count))
        b.store(to, kept)


def all_work(
    b: Builder, batch: int, group: Affine, images: int, strips: tuple[list[Strip], list[Strip]],
    together: int,
) -> Iterator[Work]:  # fmt: skip
    """All of a group, `images` and `together` tiles at a time."""
    for n0, some in b.tiles(batch, images):
        for deep, high in product(*strips):
            for start, tiles in b.tiles(high.repeat, together):
                yield Work(group, n0, some, deep, high, start, tiles)


def evacuate(b: Builder, to: Access, sums: Access, bias: Access | None) -> None:
    """Sums in the result's dtype, with a bias for each partition."""
    if bias is None:
        b.emit("tensor_copy", to, sums)
    else:
        b.emit("tensor_scalar", to, sums, bias, op0="add")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the contraction: channels c0 .. and the rows of the filter that share the array."""

    c0: int
    channels: int
    first: int = 0  # row of the filter
    rows: int = 0  # how many share; 0: each tap on its own, cut at the border

    @property
    def partitions(self) -> int:
        return self.channels * max(1, self.rows)


def parts_of(spec: Convolution) -> list[Part]:
    """The contraction cut to what fits on the partitions, rows of the filter together if few."""
    c, rows = spec.channels, spec.kernel[1]
    together = min(rows, P // c) if spec.share and not spec.weights_transposed else 1
    if together > 1 and spec.kernel[0] == 1:
        return [
            Part(c0=0, channels=c, first=i, rows=min(together, rows - i))
            for i in range(0, rows, together)
        ]
    return [Part(c0=c0, channels=min(P, c - c0)) for c0 in range(0, c, P)]
