"""Gradients of pooling: every tap adds its share to strided views of what it read."""

from ...isa import Buffer, Program, Role, itemsize
from ..limits import P
from ..windows import Strip, Tap, taps_of
from .tiles import Pool, PoolTiles

__all__ = ["pool_backward"]


def pool_backward(planes: int, spec: Pool, *, cores: int = 1) -> Program:
    """Dx from g (and "indices" for a maximum)."""
    return _Backward(planes, spec, cores).build()


class _Backward(PoolTiles):
    def __init__(self, planes: int, spec: Pool, cores: int) -> None:
        super().__init__("pool_backward", planes, spec, cores, forward=False)
        b, dtype = self.b, spec.dtype
        self.g = b.hbm("g", (self.planes, *self.outs), dtype, Role.INPUT)
        self.dx = b.hbm("dx", (self.planes, *self.sizes), dtype, Role.OUTPUT)
        self.data = self.tile("data", self.need, dtype)
        self.sum = self.tile("sum", self.made, "float32")
        self.result = self.tile("result", self.made, dtype)
        self.work = self.tile("work", self.need, "float32")
        if spec.op == "max":
            self.index = b.hbm("indices", (self.planes, *self.outs), "int32", Role.INPUT)
            self.found = self.tile("found", self.need, "int32")
            self.at = self.tile("at", self.need, "float32")
            self.where = self.tile("positions", self.made, "float32", 1)
            self.base = self.tile("base", 1, "float32", 1)
            self.line = self.tile("bases", P, "float32", 1)
        elif not spec.divisor:
            self.inverse = self.tile("inverse", self.need, "float32", 1)

    def build(self) -> Program:
        b, spec = self.b, self.spec
        for deep, high, wide, p0, planes, j in self.over():
            count, need = high.count * wide.count, deep.span * high.span * wide.span
            b.fresh(self.data, self.sum, self.result, self.work)
            self.bring(self.data, self.g, p0, planes, deep, high, wide, j)
            b.emit("memset", self.sum.rows(planes, count), value=0.0)
            g = self.data
            if spec.op == "max":
                b.fresh(self.found, self.at)
                self.bring(self.found, self.index, p0, planes, deep, high, wide, j)
                base = self.base.rows(planes, 1)
                at = self.at.rows(planes, need)
                b.emit("tensor_scalar", at, self.found.rows(planes, need), base, op0="subtract")
            else:
                g = self.work
                self._shares(planes, need)
            for taps in taps_of(deep, high, wide):
                self._tap(taps, g, planes, high.span, wide)
            done = self.result.rows(planes, count)
            b.emit("tensor_copy", done, self.sum.rows(planes, count))
            self.put(self.dx, done, p0, deep, high, wide, j)
            if spec.op == "max":
                self.move_on(planes, high.count)
        return b.build()

    def row_bytes(self, need: int, made: int) -> float:
        own, most = 2 * itemsize(self.spec.dtype), self.spec.op == "max"
        return need * (own + (24 if most else 12)) + made * (own + (12 if most else 8))

    def prepare(self, deep: Strip, high: Strip, wide: Strip) -> None:
        if self.spec.op == "max":
            self.count_on(self.where, 0, high.count, wide.count, 0)
        elif not self.spec.divisor:
            for d in range(deep.span):
                ranges = ((deep.low + d, 1), (high.low, high.span), (wide.low, wide.span))
                self.counted(self.inverse, d * high.span * wide.span, *ranges)

    def start(self, deep: Strip, high: Strip, wide: Strip, planes: int, strip: int) -> None:
        if self.spec.op == "max":
            row = high.first + strip * high.count
            self.position(deep.first, row, wide.first, high.count, planes)

    def _shares(self, planes: int, need: int) -> None:
        """The gradient that each tap of a window gets."""
        to, g = self.work.rows(planes, need), self.data.rows(planes, need)
        if self.spec.divisor:
            self.b.emit("tensor_scalar", to, g, op0="multiply", imm0=1 / self.spec.divisor)
        else:
            inverse = self.inverse.rows(planes, need)
            self.b.emit("tensor_tensor", to, g, inverse, op="multiply")

    def _tap(
        self, taps: tuple[Tap, ...], g: Buffer, planes: int, rows_held: int, wide: Strip
    ) -> None:
        b, (d, h, w) = self.b, taps
        axes, width, outs = self.spec.axes, wide.count, wide.span
        offset = (d.there * rows_held + h.there) * outs + w.there
        inner = ((outs, h.count), (1, w.count))
        own = ((axes[1].stride * width, h.count), (axes[2].stride, w.count))
        here = h.own * width + w.own
        into = self.sum.lanes(planes, *own, at=here)
        share = g.lanes(planes, *inner, at=offset)
        if self.spec.op == "max":
            hit, at = (t.lanes(planes, *inner, at=offset) for t in (self.work, self.at))
            where = self.where.lanes(planes, *own, at=here)
            b.emit("tensor_tensor", hit, at, where, op="equal")
            b.emit("tensor_tensor", hit, hit, share, op="multiply")
            share = hit
        b.emit("tensor_tensor", into, into, share, op="add")
