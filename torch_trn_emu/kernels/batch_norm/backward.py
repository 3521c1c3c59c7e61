"""Gradients of batch and group norm as programs over planes."""

from ...isa import Access, Affine, Builder, Program, Role
from ..planes import Chunk, Planes
from .tiles import MOST_CHUNKS, Norm, NormTiles

__all__ = ["channel_norm_backward"]


def channel_norm_backward(
    planes: Planes, norm: Norm, *, wants: tuple[bool, bool, bool], cores: int = 1
) -> Program:
    """Gradients of x, weight and bias from g, x, mean and rstd (or, if `given`, the variance).

    With parameters along the outer dimension, those gradients are stored for every partition.
    """
    b = Builder(f"norm_backward {planes.rows}x{planes.outer}x{planes.inner}", cores=cores)
    return _Backward(b, planes, norm).build(wants)


class _Backward(NormTiles):
    def __init__(self, b: Builder, planes: Planes, norm: Norm) -> None:
        super().__init__(b, planes, norm, ("g", "x"), "dx", 2, {"weight": norm.weight})
        self.count = planes.outer * planes.inner_chunks
        cut = not norm.outer or planes.inner_chunks > 1
        self.one_by_one = self.count > MOST_CHUNKS and cut
        if self.one_by_one:
            self.count = planes.outer if norm.outer else 1
            self.column("sum of chunk")
        for name in ("dw of chunks", "db of chunks"):
            self.column(name, self.count)
        for name in ("dw", "db"):
            self.column(name, planes.outer if norm.outer else 1)
        self.column("weighted", planes.outer)
        for name in ("mean tile", "rstd tile", "k", "mh", "mhx"):
            self.column(name)

    def build(self, wants: tuple[bool, bool, bool]) -> Program:
        b, norm = self.b, self.norm
        self.wants = wants
        names = ("mean", "variance" if norm.given else "rstd")
        self.given = [self.statistic(n, Role.INPUT) for n in names]
        wide = self.planes.outer if norm.outer else 1
        shape = (self.partitions * wide,)
        self.gradients = {
            n: b.hbm(n, shape, "float32", Role.OUTPUT)
            for n, wanted in zip(("dw", "db"), wants[1:], strict=True)
            if wanted
        }
        for first, row, rows, repeats in self.planes.over_rows(b):
            self._rows(first, row, rows, repeats)
        return b.build()

    def _rows(self, first: Affine, row: Affine, rows: int, repeats: int) -> None:
        b, n = self.b, rows * repeats
        b.fresh(*(t for k, t in self.small.items() if k not in self.parameters))
        self.bring_parameters(row, rows, repeats)
        if self.resident:
            b.fresh(*self.tiles.values())
        for name, hbm in zip(("mean tile", "rstd tile"), self.given, strict=True):
            b.load(self.at(name, n), self.of_partitions(hbm, first, n))
        rstd = self.at("rstd tile", n)
        if self.norm.given:
            b.emit("tensor_scalar", rstd, rstd, op0="add", imm0=self.norm.eps)
            b.emit("activation", rstd, rstd, op="rsqrt")
        sums = self.gradients or not self.norm.given
        if sums:
            if self.one_by_one:
                for name in ("dw of chunks", "db of chunks"):
                    b.emit("memset", self.small[name].rows(n, self.count), value=0.0)
            for chunk in self.planes.over_chunks(b):
                self.bring(chunk, first, n)
                self._sums(chunk, n)
            self._totals(first, n)
        if self.wants[0]:
            for chunk in self.planes.over_chunks(b):
                if not (self.resident and sums):
                    self.bring(chunk, first, n)
                self._into_x(chunk, first, n)

    def _xhat(self, chunk: Chunk, n: int) -> Access:
        xhat = self.shaped(self.made[0], n, chunk)
        operands = (self.tile("x", n, chunk), self.at("mean tile", n), self.at("rstd tile", n))
        self.b.emit("tensor_scalar", xhat, *operands, op0="subtract", op1="multiply")
        return xhat

    def _sums(self, chunk: Chunk, n: int) -> None:
        """Over the inner dimension, of g and of g xhat."""
        b = self.b
        b.fresh(*self.made)
        g, xhat = self.tile("g", n, chunk), self._xhat(chunk, n)
        b.emit("tensor_tensor", xhat, g, xhat, op="multiply")
        if self.one_by_one:
            for name, tile in (("dw of chunks", self.made[0]), ("db of chunks", self.tiles["g"])):
                b.fresh(self.small["sum of chunk"])
                each = self.at("sum of chunk", n)
                total = self.at(name, n, chunk.o0 if self.norm.outer else 0)
                part = chunk.number if self.resident and tile is self.tiles["g"] else 0
                b.emit("tensor_reduce", each, tile.rows(n, chunk.elements, part=part), op="add")
                b.emit("tensor_tensor", total, total, each, op="add")
            return
        at = chunk.o0 * self.planes.inner_chunks + chunk.s_number
        for name, data in (("dw of chunks", xhat), ("db of chunks", g)):
            b.emit("tensor_reduce", self.small[name].rows(n, chunk.outer, at), data, op="add")

    def _totals(self, first: Affine, n: int) -> None:
        b, outer, per = self.b, self.planes.outer, self.planes.inner_chunks
        wide = outer if self.norm.outer else 1
        for name in ("dw", "db"):
            total = self.small[name].rows(n, wide)
            parts = self.small[f"{name} of chunks"]
            shape = ((per, outer), (1, per)) if wide > 1 else ((1, self.count),)
            source = parts.lanes(n, *shape)
            if wide == self.count:
                b.emit("tensor_copy", total, parts.rows(n, wide))
            else:
                b.emit("tensor_reduce", total, source, op="add")
            if name in self.gradients:
                to = self.gradients[name].box((wide, n), (1, wide), at=first * wide)
                b.store(to, total)
        if self.norm.given:
            return
        for name, of in (("mh", "db"), ("mhx", "dw")):  # means of h and of h xhat, h = g weight
            to = self.at(name, n)
            source = self.small[of].rows(n, wide)
            if wide > 1:
                weighted = self.small["weighted"].rows(n, outer)
                if self.norm.weight:
                    weight = self.small["weight"].rows(n, outer)
                    b.emit("tensor_tensor", weighted, source, weight, op="multiply")
                    source = weighted
                b.emit("tensor_reduce", to, source, op="add")
                source = to
            elif self.norm.weight:
                b.emit("tensor_tensor", to, source, self.at("weight", n), op="multiply")
                source = to
            b.emit("tensor_scalar", to, source, op0="multiply", imm0=1.0 / self.planes.per_row)

    def _into_x(self, chunk: Chunk, first: Affine, n: int) -> None:
        """Dx = rstd (h - mean(h) - xhat mean(h xhat))."""
        b = self.b
        b.fresh(self.result, *self.made)
        h = self.tile("g", n, chunk)
        work, done = self.shaped(self.made[1], n, chunk), self.shaped(self.result, n, chunk)
        if self.norm.weight and self.norm.outer:
            b.emit("tensor_tensor", work, h, self.repeated("weight", n, chunk), op="multiply")
            h = work
        elif self.norm.weight:
            b.emit("tensor_scalar", work, h, self.at("weight", n), op0="multiply")
            h = work
        if not self.norm.given:
            xhat = self._xhat(chunk, n)
            means = (self.at("mhx", n), self.at("mh", n))
            b.emit("tensor_scalar", xhat, xhat, *means, op0="multiply", op1="add")
            b.emit("tensor_tensor", work, h, xhat, op="subtract")
            h = work
        b.emit("tensor_scalar", done, h, self.at("rstd tile", n), op0="multiply")
        b.store(self.planes.box(self.out, first, n, chunk), done)
