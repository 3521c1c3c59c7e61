"""Pooling as windowed accesses on the Vector engine: one pass a tap, over strided views in SBUF."""

from math import inf

from ...isa import Access, Program, Role, itemsize
from ..limits import P
from ..windows import Strip, Tap, taps_of
from .tiles import Pool, PoolTiles

__all__ = ["pool"]


def pool(planes: int, spec: Pool, *, cores: int = 1) -> Program:
    """Y of [planes, out...] from x of [planes, size...]; "indices" too if asked for."""
    return _Forward(planes, spec, cores).build()


class _Forward(PoolTiles):
    def __init__(self, planes: int, spec: Pool, cores: int) -> None:
        super().__init__("pool", planes, spec, cores, forward=True)
        b, dtype = self.b, spec.dtype
        self.x = b.hbm("x", (self.planes, *self.sizes), dtype, Role.INPUT)
        self.y = b.hbm("y", (self.planes, *self.outs), dtype, Role.OUTPUT)
        self.data = self.tile("data", self.need, dtype)
        if spec.op == "max":
            self.result = self.best = self.tile("best", self.made, dtype)
        else:
            self.best = self.tile("best", self.made, "float32")
            self.result = self.tile("result", self.made, dtype)
        if spec.indices:
            self.index = b.hbm("indices", (self.planes, *self.outs), "int32", Role.OUTPUT)
            self.where = self.tile("positions", self.need, "float32", 1)
            self.mask = self.tile("mask", self.made, "float32")
            self.at = self.tile("at", self.made, "float32")
            self.found = self.tile("found", self.made, "int32")
            self.base = self.tile("base", 1, "float32", 1)
            self.line = self.tile("bases", P, "float32", 1)
        if spec.op == "add" and not spec.divisor:
            self.inverse = self.tile("inverse", self.made, "float32", 1)

    def build(self) -> Program:
        b, spec = self.b, self.spec
        for deep, high, wide, p0, planes, j in self.over():
            b.fresh(self.data, self.best, *([self.result] if self.result is not self.best else []))
            self.bring(self.data, self.x, p0, planes, deep, high, wide, j)
            count = high.count * wide.count
            best = self.best.rows(planes, count)
            b.emit("memset", best, value=-inf if spec.op == "max" else 0.0)
            if spec.indices:
                b.fresh(self.mask, self.at, self.found)
                b.emit("memset", self.at.rows(planes, count), value=0.0)
            for taps in taps_of(deep, high, wide):
                self._tap(taps, planes, high.span, wide)
            done = self._finish(planes, count)
            self.put(self.y, done, p0, deep, high, wide, j)
            if spec.indices:
                found, at = self.found.rows(planes, count), self.at.rows(planes, count)
                base = self.base.rows(planes, 1)
                b.emit("tensor_scalar", found, at, base, op0="add")
                self.put(self.index, found, p0, deep, high, wide, j)
                self.move_on(planes, high.step)
        return b.build()

    def row_bytes(self, need: int, made: int) -> float:
        own, places = 2 * itemsize(self.spec.dtype), 4 if self.spec.indices else 0
        adds = 12 if self.spec.op == "add" else 0
        return need * (own + places) + made * (own + 6 * places + adds)

    def prepare(self, deep: Strip, high: Strip, wide: Strip) -> None:
        """What all strips of a kind share: positions, or what the average divides by."""
        if self.spec.indices:
            area = self.sizes[1] * self.sizes[2]
            for d in range(deep.span):
                at = d * high.span * wide.span
                self.count_on(self.where, at, high.span, wide.span, d * area)
        if self.spec.op == "add" and not self.spec.divisor:
            ranges = ((deep.first, 1), (high.first, high.count), (wide.first, wide.count))
            self.counted(self.inverse, 0, *ranges)

    def start(self, deep: Strip, high: Strip, wide: Strip, planes: int, strip: int) -> None:
        if self.spec.indices:
            row = high.low + strip * high.step
            self.position(deep.low, row, wide.low, high.step, planes)

    def _tap(self, taps: tuple[Tap, ...], planes: int, rows_held: int, wide: Strip) -> None:
        b, (d, h, w) = self.b, taps
        axes, width, outs = self.spec.axes, wide.span, wide.count
        offset = (d.there * rows_held + h.there) * width + w.there
        shape = ((axes[1].stride * width, h.count), (axes[2].stride, w.count))
        own = ((outs, h.count), (1, w.count))
        there = h.own * outs + w.own
        x = self.data.lanes(planes, *shape, at=offset)
        best = self.best.lanes(planes, *own, at=there)
        if self.spec.indices:
            where = self.where.lanes(planes, *shape, at=offset)
            mask, at = (t.lanes(planes, *own, at=there) for t in (self.mask, self.at))
            b.emit("tensor_tensor", mask, x, best, op="greater")
            b.emit("select", at, mask, where, at)
        b.emit("tensor_tensor", best, best, x, op=self.spec.op)

    def _finish(self, planes: int, count: int) -> Access:
        b, best = self.b, self.best.rows(planes, count)
        if self.spec.op == "max":
            return best
        done = self.result.rows(planes, count)
        if self.spec.divisor:
            b.emit("tensor_scalar", done, best, op0="multiply", imm0=1 / self.spec.divisor)
        else:
            b.emit("tensor_tensor", done, best, self.inverse.rows(planes, count), op="multiply")
        return done
