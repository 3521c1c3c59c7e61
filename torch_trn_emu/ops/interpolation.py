"""Planes resampled to another size: two products with matrices of weights, one for each side.

Every interpolation that is linear in the plane is one: nearest, bilinear, bicubic, with or without
antialiasing, and its gradient has the matrices transposed. The first product contracts the height
and leaves the plane turned, the second contracts the width and turns it back. Of a matrix only the
band around its diagonal is not zero; tiles outside are left out. Planes that SBUF does not hold are
made in windows, of which each needs a window of the plane and of the matrices. Narrow planes lie
side by side, as many as the array has rows for: their matrix for the width has that of one plane
along its diagonal.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, floor, prod

from ..calls import Call, Target
from ..isa import Affine, Buffer, Builder, Engine, Program, Role, itemsize
from ..kernels.limits import BANK, TILE_BYTES, P, evenly
from ..kernels.windows import MOST_UNROLLED
from .faster import faster
from .op import Lowered, Lowering

__all__ = ["resampled", "resampling"]

HELD_BYTES = 144 * 1024  # of a partition, for planes and weights: every chip has as many (chosen)
MOST_WINDOW, LEAST_WINDOW = 512, 32  # outputs of a side that a window has (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """A side of the plane, from `size` to `out`; an output reaches `reach` inputs to both sides.

    first, count  the outputs that are made
    low, span     the inputs that these need
    """

    size: int
    out: int
    reach: float
    first: int = 0
    count: int
    low: int = 0
    span: int

    @staticmethod
    def of(size: int, out: int, reach: float) -> "_Side":
        return _Side(size=size, out=out, reach=reach, count=out, span=size)

    def needed(self, first: int, count: int) -> tuple[float, float]:
        """From which input to which one outputs `first` .. reach."""
        ratio = self.size / self.out
        return first * ratio - self.reach, (first + count) * ratio + self.reach

    def cut(self, most: int) -> "list[_Side]":
        """In windows of at most so many outputs, with the inputs that each needs."""
        if most >= self.out:
            return [self]
        found, step = [], evenly(self.out, most)
        for first in range(0, self.out, step):
            count = min(step, self.out - first)
            low, high = self.needed(first, count)
            low, high = max(0, floor(low)), min(self.size, ceil(high) + 1)
            found.append(replace(self, first=first, count=count, low=low, span=high - low))
        return found

    def parts(self) -> list[tuple[int, int]]:
        """(first, count) of inputs that lie on the partitions together."""
        return [(k, min(P, self.span - k)) for k in range(0, self.span, P)]

    def band(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(part, first input, inputs) that outputs `first` .. of the window need."""
        low, high = self.needed(self.first + first, count)
        for part, (k, size) in enumerate(self.parts()):
            if k <= high - self.low and k + size > low - self.low:
                yield part, k, size


def resampled(
    planes: int, height: _Side, width: _Side, *, dtype: str, most: int = 1 << 30, cores: int = 1
) -> Program:
    """out[p] = high^T in[p] wide, with high [height, out] and wide [width, out].

    most  outputs of a side that are made together, if SBUF holds what they need
    """
    planes = ceil(planes / cores)
    b = Builder(f"resample {planes} planes", cores=cores)
    return _Resample(b, planes, height, width, dtype, most).build()


def _windows(
    height: _Side, width: _Side, size: float, most: int
) -> tuple[list[_Side], list[_Side]]:
    """Both sides, whole or in as many windows as SBUF needs, for elements of `size` bytes."""

    def held(high: list[_Side], wide: list[_Side]) -> float:
        parts = [max(len(s.parts()) for s in side) for side in (high, wide)]
        outs = [max(s.count for s in side) for side in (high, wide)]
        slots = 1 if len(high) == len(wide) == 1 else 2
        made = outs[0] * (slots * parts[0] + 2 * parts[1]) + slots * outs[1] * parts[1]
        return size * (2 * parts[0] * max(s.span for s in wide) + made)

    high, wide = height.cut(most), width.cut(most)
    while held(high, wide) > HELD_BYTES and most > LEAST_WINDOW:
        most = min(ceil(most / 2), MOST_WINDOW)
        high, wide = height.cut(most), width.cut(most)
    if len(high) * len(wide) > MOST_UNROLLED:
        raise ValueError(f"{len(high) * len(wide)} windows that no loop can stand for")
    return high, wide


class _Resample:
    def __init__(
        self, b: Builder, planes: int, height: _Side, width: _Side, dtype: str, most: int
    ) -> None:
        self.b, self.planes, self.height, self.width = b, planes, height, width
        self.compute = dtype if dtype in ("float32", "bfloat16") else "float32"
        size = itemsize(self.compute)
        self.source = b.hbm("in", (planes, height.size, width.size), dtype, Role.INPUT)
        self.out = b.hbm("out", (planes, height.out, width.out), dtype, Role.OUTPUT)
        self.windows = high, wide = _windows(height, width, size, most)
        tall, broad = (max(len(s.parts()) for s in side) for side in (high, wide))
        rows, columns = (max(s.count for s in side) for side in (high, wide))
        span = max(s.span for s in wide)
        self.beside = max(1, min(planes, P // span, BANK // columns)) if len(wide) == 1 else 1
        fit = max(1, int(TILE_BYTES / (span * size * tall)) // self.beside) * self.beside
        self.together = min(ceil(planes / self.beside) * self.beside, fit)
        self.data = b.sbuf("planes", self.together * span, self.compute, slots=2, parts=tall)
        slots, across = 1 if len(high) == len(wide) == 1 else 2, self.beside * columns
        self.high = b.sbuf("high", rows, self.compute, slots=slots, parts=tall)
        self.wide = b.sbuf("wide", across, self.compute, slots=slots, parts=broad)
        self.transposed = b.sbuf("transposed", rows, self.compute, slots=2, parts=broad)
        self.first, self.second = b.psum("first", BANK, slots=3), b.psum("second", BANK, slots=3)
        self.result = b.sbuf("result", min(BANK, across), dtype, slots=4)
        self.weights = [
            b.hbm(f"{name} weights", (side.size, side.out), self.compute, Role.WEIGHT)
            for name, side in (("high", height), ("wide", width))
        ]

    def build(self) -> Program:
        b = self.b
        for high in self.windows[0]:
            self.height = high
            self._weights(0, self.high, high, 1)
            for wide in self.windows[1]:
                self.width = wide
                self._weights(1, self.wide, wide, self.beside)
                for p0, planes in b.tiles(self.planes, self.together):
                    self._load(p0, planes)
                    for p, beside in b.tiles(planes, self.beside):
                        b.fresh(self.transposed)
                        self._contract_height(p, beside)
                        self._contract_width(p0 + p, beside)
        return b.build()

    def _weights(self, number: int, tile: Buffer, side: _Side, beside: int) -> None:
        """A side's matrix, for planes that lie beside each other along the diagonal."""
        b, row = self.b, tile.row_elements
        if tile.slots > 1:
            b.fresh(tile)
        if beside > 1:
            b.emit("memset", tile.rows(beside * side.span, row), value=0.0)
        for plane in range(beside):
            for part, (k, size) in enumerate(side.parts()):
                at = plane * (side.span * row + side.count)
                to = tile.box((row, size), (1, side.count), at=at, part=part)
                at = (side.low + k) * side.out + side.first
                b.load(to, self.weights[number].box((side.out, size), (1, side.count), at=at))

    def _load(self, p0: Affine, planes: int) -> None:
        """Rows of several planes, the height on partitions."""
        b, high, wide = self.b, self.height, self.width
        area = high.size * wide.size
        b.fresh(self.data)
        for part, (k, size) in enumerate(high.parts()):
            at = p0 * area + (high.low + k) * wide.size + wide.low
            source = self.source.box((wide.size, size), (area, planes), (1, wide.span), at=at)
            to = self.data.lanes(size, (wide.span, planes), (1, wide.span), part=part)
            b.load(to, source)

    def _contract_height(self, p: Affine, beside: int) -> None:
        """[width, out height] of planes that lie beside each other."""
        b, width = self.b, self.width.span
        for part, (w0, size) in enumerate(self.width.parts()):
            columns = beside * width if beside > 1 else size
            for h0 in range(0, self.height.count, BANK):
                count = min(BANK, self.height.count - h0)
                b.fresh(self.first)
                made = self.first.rows(columns, count)
                for k, _, rows in self.height.band(h0, count):
                    stationary = self.data.rows(rows, columns, p * width + w0, part=k)
                    moving = self.high.rows(rows, count, h0, part=k)
                    b.emit("nc_matmul", made, stationary, moving, load="background")
                to = self.transposed.rows(columns, count, h0, part=part)
                b.emit("tensor_copy", to, made)

    def _contract_width(self, plane: Affine, beside: int) -> None:
        """[out height, out width] of planes that lie beside each other, stored."""
        b, width, high, wide = self.b, self.width.count, self.height, self.width
        area = high.out * wide.out
        for h0 in range(0, high.count, P):
            size = min(P, high.count - h0)
            for w0 in range(0, width, BANK):
                count = min(BANK, beside * width - w0)
                b.fresh(self.second, self.result)
                made, done = self.second.rows(size, count), self.result.rows(size, count)
                for k, _, rows in wide.band(w0, count):
                    held = beside * wide.span if beside > 1 else rows
                    stationary = self.transposed.rows(held, size, h0, part=k)
                    moving = self.wide.rows(held, count, w0, part=k)
                    b.emit("nc_matmul", made, stationary, moving, load="background")
                b.emit("tensor_copy", done, made, engine=Engine.SCALAR)
                at = plane * area + (high.first + h0) * wide.out + wide.first + w0
                each = min(count, width)
                to = self.out.box((wide.out, size), (area, beside), (1, each), at=at)
                b.store(to, self.result.lanes(size, (each, beside), (1, each)))


# --- from calls ---


def resampling(support: float) -> Lowering:
    """From the input's last two dimensions (or one) to the result's.

    support  inputs to each side of an output that count, at the coarser of the two scales
    """

    def lower(call: Call, target: Target) -> Lowered:
        x, out = call.tensors[0], call.out
        sizes = zip((1, *x.shape[2:])[-2:], (1, *out.shape[2:])[-2:], strict=True)
        sides = [_Side.of(n, m, (support + 1) * max(1.0, n / m) + 1) for n, m in sizes]
        planes = prod(x.shape[:2])
        high, wide = sides
        longest = max(high.out, wide.out)
        mosts = {longest, min(longest, MOST_WINDOW)}
        if longest > P:
            mosts.add(min(ceil(longest / 2), MOST_WINDOW))
        ways = [
            (resampled(planes, high, wide, dtype=x.dtype, most=most, cores=target.cores),)
            for most in sorted(mosts, reverse=True)
        ]
        return faster(ways, target)

    return lower
