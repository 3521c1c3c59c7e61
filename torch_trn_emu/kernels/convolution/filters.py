"""The weights of a convolution in SBUF, a block of filters at a time, as the array wants them."""

from math import ceil

from ...isa import Access, Affine, Builder, Role, affine, itemsize
from ..limits import WEIGHT_BYTES, P
from ..planes import columns
from .shape import Convolution, Part

__all__ = ["Filter"]


class Filter:
    """[channels, products x filters] of each part of the contraction, and the biases."""

    def __init__(self, b: Builder, how: Convolution, parts: list[Part]) -> None:
        self.b, self.how, self.parts = b, how, parts
        c, f = how.channels, how.filters
        shape = (c, how.taps, f) if how.turned else (how.groups * f, c, how.taps)
        self.weight = b.hbm("weight", shape, how.dtype, Role.WEIGHT)
        self.block = self._block()
        per_part = self.block * how.taps // (how.kernel[1] if parts[0].rows else 1)
        self.filter = b.sbuf("filter", per_part, how.compute, parts=len(parts))
        if not how.turned:
            natural = max(p.channels for p in parts) * how.taps
            self.natural = b.sbuf("filter rows", natural, how.compute, slots=2)
            self.turned = b.psum("filter turned", P, how.compute, slots=2)
        if how.bias:
            self.bias = b.hbm("bias", (how.groups * f,), how.bias, Role.INPUT)
            self.added = b.sbuf("bias of filters", ceil(self.block / P), how.bias, slots=2)

    def _block(self) -> int:
        """Filters whose weights are in SBUF together."""
        each = self.how.taps * len(self.parts) * itemsize(self.how.compute)
        fits = int(WEIGHT_BYTES / each)
        return self.how.filters if fits >= self.how.filters else max(P, fits // P * P)

    def load(self, group: Affine, f0: Affine, fs: int) -> None:
        self.b.fresh(self.filter)
        if self.how.bias:
            self._load_bias(group, f0, fs)
        if self.how.turned:
            row = self.how.taps * self.how.filters
            for k, part in enumerate(self.parts):
                to = columns(self.filter, part.channels, self.how.taps * fs, part=k)
                pattern = ((row, part.channels), (self.how.filters, self.how.taps), (1, fs))
                if fs == self.how.filters:
                    pattern = ((row, part.channels), (1, row))  # type: ignore[assignment]
                at = affine(part.c0 * row) + f0
                self.b.load(to, Access(buffer=self.weight, offset=at, pattern=pattern))
            return
        for start, size in self.b.tiles(fs, P):
            for k, part in enumerate(self.parts):
                if not k or not part.rows:  # parts that share the array have all channels
                    self._load_natural(group * self.how.filters + f0 + start, size, part)
                self._turn(k, part, start, size, fs)

    def _load_bias(self, group: Affine, f0: Affine, fs: int) -> None:
        self.b.fresh(self.added)
        full, rest = divmod(fs, P)
        for k, (tiles, size) in enumerate(((full, P), (1, rest))):
            if tiles and size:
                column = full if k else 0
                at = group * self.how.filters + f0 + column * P
                to = Access(
                    buffer=self.added,
                    offset=Affine(column),
                    pattern=((self.added.row_elements, size), (1, tiles)),
                )
                source = Access(buffer=self.bias, offset=at, pattern=((1, size), (P, tiles)))
                self.b.load(to, source)

    def _load_natural(self, f: Affine, size: int, part: Part) -> None:
        taps = self.how.taps
        self.b.fresh(self.natural)
        row, count = self.how.channels * taps, part.channels * taps
        at = f * row + part.c0 * taps
        source = Access(buffer=self.weight, offset=at, pattern=((row, size), (1, count)))
        self.b.load(columns(self.natural, size, count), source)

    def _turn(self, k: int, part: Part, start: Affine, size: int, fs: int) -> None:
        """[f, c] of every tap (or, sharing, of a column of taps) to [c, f]."""
        b, width, taps = self.b, self.how.kernel[2], self.how.taps
        for number, at in enumerate(self._columns(part)):
            shared = ((width, part.rows),) if part.rows > 1 else ()
            pattern = ((self.natural.row_elements, size), *shared, (taps, part.channels))
            source = Access(buffer=self.natural, offset=Affine(at), pattern=pattern)
            b.fresh(self.turned)
            turned = columns(self.turned, part.partitions, size)
            b.emit("nc_transpose", turned, source)
            to = columns(self.filter, part.partitions, size, start + number * fs, part=k)
            b.emit("tensor_copy", to, turned)

    def _columns(self, part: Part) -> list[int]:
        """Where in the filter's taps each product of the part starts."""
        if part.rows:
            return [part.first * self.how.kernel[2] + j for j in range(self.how.kernel[2])]
        return list(range(self.how.taps))
