"""Planes resampled to another size: two products with matrices of weights, one for each side.

Every interpolation that is linear in the plane is one: nearest, bilinear, bicubic, with or without
antialiasing, and its gradient has the matrices transposed. The first product contracts the height
and leaves the plane turned, the second contracts the width and turns it back. Of a matrix only the
band around its diagonal is not zero; tiles outside are left out. Narrow planes lie side by side, as
many as the array has rows for: their matrix for the width has that of one plane along its diagonal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from ..calls import Call, Target
from ..isa import Affine, Buffer, Builder, Engine, Program, Role, itemsize
from ..kernels.limits import BANK, TILE_BYTES, P
from .op import Lowered, Lowering

__all__ = ["resampled", "resampling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """A side of the plane, from `size` to `out`; an output reaches `reach` inputs to both sides."""

    size: int
    out: int
    reach: float

    def parts(self) -> list[tuple[int, int]]:
        """(first, count) of inputs that lie on the partitions together."""
        return [(k, min(P, self.size - k)) for k in range(0, self.size, P)]

    def band(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(part, first input, inputs) that outputs `first` .. need."""
        ratio = self.size / self.out
        low, high = first * ratio - self.reach, (first + count) * ratio + self.reach
        for part, (k, size) in enumerate(self.parts()):
            if k <= high and k + size > low:
                yield part, k, size


def resampled(planes: int, height: _Side, width: _Side, *, dtype: str, cores: int = 1) -> Program:
    """out[p] = high^T in[p] wide, with high [height, out] and wide [width, out]."""
    planes = ceil(planes / cores)
    b = Builder(f"resample {planes} planes", cores=cores)
    return _Resample(b, planes, height, width, dtype).build()


class _Resample:
    def __init__(self, b: Builder, planes: int, height: _Side, width: _Side, dtype: str) -> None:
        self.b, self.planes, self.height, self.width = b, planes, height, width
        self.compute = dtype if dtype in ("float32", "bfloat16") else "float32"
        size, whole = itemsize(self.compute), width.size
        self.source = b.hbm("in", (planes, height.size, whole), dtype, Role.INPUT)
        self.out = b.hbm("out", (planes, height.out, width.out), dtype, Role.OUTPUT)
        each = whole * size * len(height.parts())
        self.beside = max(1, min(planes, P // whole, BANK // width.out))
        fit = max(1, int(TILE_BYTES / each) // self.beside) * self.beside
        self.together = min(ceil(planes / self.beside) * self.beside, fit)
        length = self.together * whole
        self.data = b.sbuf("planes", length, self.compute, slots=2, parts=len(height.parts()))
        self.high = b.sbuf("high", height.out, self.compute, parts=len(height.parts()))
        across = self.beside * width.out
        self.wide = b.sbuf("wide", across, self.compute, parts=len(width.parts()))
        self.transposed = b.sbuf(
            "transposed", height.out, self.compute, slots=2, parts=len(width.parts())
        )
        self.first, self.second = b.psum("first", BANK, slots=3), b.psum("second", BANK, slots=3)
        self.result = b.sbuf("result", min(BANK, across), dtype, slots=4)

    def build(self) -> Program:
        b = self.b
        self._weights("high", self.high, self.height, 1)
        self._weights("wide", self.wide, self.width, self.beside)
        for p0, planes in b.tiles(self.planes, self.together):
            self._load(p0, planes)
            for p, beside in b.tiles(planes, self.beside):
                b.fresh(self.transposed)
                self._contract_height(p, beside)
                self._contract_width(p0 + p, beside)
        return b.build()

    def _weights(self, name: str, tile: Buffer, side: _Side, beside: int) -> None:
        """A side's matrix, for planes that lie beside each other along the diagonal."""
        b, row = self.b, beside * side.out
        weights = b.hbm(f"{name} weights", (side.size, side.out), self.compute, Role.WEIGHT)
        if beside > 1:
            b.emit("memset", tile.rows(beside * side.size, row), value=0.0)
        for plane in range(beside):
            for part, (k, size) in enumerate(side.parts()):
                at = plane * (side.size * row + side.out)
                to = tile.box((row, size), (1, side.out), at=at, part=part)
                b.load(to, weights.rows(size, side.out, k * side.out))

    def _load(self, p0: Affine, planes: int) -> None:
        """Rows of several planes, the height on partitions."""
        b, width = self.b, self.width.size
        area = self.height.size * width
        b.fresh(self.data)
        for part, (k, size) in enumerate(self.height.parts()):
            at = p0 * area + k * width
            source = self.source.box((width, size), (area, planes), (1, width), at=at)
            to = self.data.lanes(size, (width, planes), (1, width), part=part)
            b.load(to, source)

    def _contract_height(self, p: Affine, beside: int) -> None:
        """[width, out height] of planes that lie beside each other."""
        b, width = self.b, self.width.size
        for part, (w0, size) in enumerate(self.width.parts()):
            columns = beside * width if beside > 1 else size
            for h0 in range(0, self.height.out, BANK):
                count = min(BANK, self.height.out - h0)
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
        b, width, area = self.b, self.width.out, self.height.out * self.width.out
        for h0 in range(0, self.height.out, P):
            size = min(P, self.height.out - h0)
            for w0 in range(0, width, BANK):
                count = min(BANK, beside * width - w0)
                b.fresh(self.second, self.result)
                made, done = self.second.rows(size, count), self.result.rows(size, count)
                for k, _, rows in self.width.band(w0, count):
                    held = beside * self.width.size if beside > 1 else rows
                    stationary = self.transposed.rows(held, size, h0, part=k)
                    moving = self.wide.rows(held, count, w0, part=k)
                    b.emit("nc_matmul", made, stationary, moving, load="background")
                b.emit("tensor_copy", done, made, engine=Engine.SCALAR)
                at = plane * area + h0 * width + w0
                each = min(count, width)
                to = self.out.box((width, size), (area, beside), (1, each), at=at)
                b.store(to, self.result.lanes(size, (each, beside), (1, each)))


# --- from calls ---


def resampling(support: float) -> Lowering:
    """From the input's last two dimensions (or one) to the result's.

    support  inputs to each side of an output that count, at the coarser of the two scales
    """

    def lower(call: Call, target: Target) -> Lowered:
        x, out = call.tensors[0], call.out
        sizes = zip((1, *x.shape[2:])[-2:], (1, *out.shape[2:])[-2:], strict=True)
        sides = [_Side(size=n, out=m, reach=(support + 1) * max(1.0, n / m) + 1) for n, m in sizes]
        planes = prod(x.shape[:2])
        high, wide = sides
        return (resampled(planes, high, wide, dtype=x.dtype, cores=target.cores),)

    return lower
