"""The weights of a convolution in SBUF, a block of filters at a time, as the array wants them."""

from math import ceil

from ...isa import Affine, Builder, Role, affine, itemsize
from ..limits import WEIGHT_BYTES, P
from ..planes import several
from .shape import Convolution, Part

__all__ = ["Filter"]


class Filter:
    """[channels, products x filters] of each part of the contraction, and the biases."""

    def __init__(self, b: Builder, spec: Convolution, parts: list[Part]) -> None:
        self.b, self.spec, self.parts = b, spec, parts
        c, f = spec.channels, spec.filters
        shape = (c, spec.taps, f) if spec.weights_transposed else (spec.groups * f, c, spec.taps)
        self.weight = b.hbm("weight", shape, spec.dtype, Role.WEIGHT)
        self.block = self._block()
        per_part = self.block * spec.taps // (spec.kernel[1] if parts[0].rows else 1)
        self.filter = b.sbuf("filter", per_part, spec.compute, parts=len(parts))
        if not spec.weights_transposed:
            natural = max(p.channels for p in parts) * spec.taps
            self.natural = b.sbuf("filter rows", natural, spec.compute, slots=2)
            self.transposed = b.psum("filter transposed", P, spec.compute, slots=2)
        if spec.bias:
            self.bias = b.hbm("bias", (spec.groups * f,), spec.bias, Role.INPUT)
            self.added = b.sbuf("bias of filters", ceil(self.block / P), spec.bias, slots=2)

    def _block(self) -> int:
        """Filters whose weights are in SBUF together."""
        each = self.spec.taps * len(self.parts) * itemsize(self.spec.compute)
        fits = int(WEIGHT_BYTES / each)
        return self.spec.filters if fits >= self.spec.filters else max(P, fits // P * P)

    def load(self, group: Affine, f0: Affine, fs: int) -> None:
        self.b.fresh(self.filter)
        if self.spec.bias:
            self._load_bias(group, f0, fs)
        if self.spec.weights_transposed:
            row = self.spec.taps * self.spec.filters
            for k, part in enumerate(self.parts):
                to = self.filter.rows(part.channels, self.spec.taps * fs, part=k)
                inner = [(self.spec.filters, self.spec.taps), (1, fs)]
                inner = [(1, row)] if fs == self.spec.filters else inner
                at = affine(part.c0 * row) + f0
                self.b.load(to, self.weight.box((row, part.channels), *inner, at=at))
            return
        for start, size in self.b.tiles(fs, P):
            for k, part in enumerate(self.parts):
                if not k or not part.rows:  # parts that share the array have all channels
                    self._load_natural(group * self.spec.filters + f0 + start, size, part)
                self._turn(k, part, start, size, fs)

    def _load_bias(self, group: Affine, f0: Affine, fs: int) -> None:
        self.b.fresh(self.added)
        full, rest = divmod(fs, P)
        for k, (tiles, size) in enumerate(((full, P), (1, rest))):
            if tiles and size:
                column = full if k else 0
                at = group * self.spec.filters + f0 + column * P
                source = self.bias.box((1, size), (P, tiles), at=at)
                self.b.load(self.added.rows(size, tiles, column), source)

    def _load_natural(self, f: Affine, size: int, part: Part) -> None:
        taps = self.spec.taps
        self.b.fresh(self.natural)
        row, count = self.spec.channels * taps, part.channels * taps
        at = f * row + part.c0 * taps
        source = self.weight.box((row, size), (1, count), at=at)
        self.b.load(self.natural.rows(size, count), source)

    def _turn(self, k: int, part: Part, start: Affine, size: int, fs: int) -> None:
        """[f, c] of every tap (or, sharing, of a column of taps) to [c, f]."""
        b, width, taps = self.b, self.spec.kernel[2], self.spec.taps
        for number, at in enumerate(self._columns(part)):
            shared = several([(width, part.rows)])
            inner = (*shared, (taps, part.channels))
            source = self.natural.lanes(size, *inner, at=at)
            b.fresh(self.transposed)
            transposed = self.transposed.rows(part.partitions, size)
            b.emit("nc_transpose", transposed, source)
            to = self.filter.rows(part.partitions, size, start + number * fs, part=k)
            b.emit("tensor_copy", to, transposed)

    def _columns(self, part: Part) -> list[int]:
        """Where in the filter's taps each product of the part starts."""
        if part.rows:
            return [part.first * self.spec.kernel[2] + j for j in range(self.spec.kernel[2])]
        return list(range(self.spec.taps))
