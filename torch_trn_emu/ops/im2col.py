"""Patches of planes side by side (im2col, unfold) and added back (col2im, fold).

Planes lie on partitions, a strip of rows at a time. The Vector engine copies each tap's strided
view to its place, or adds it there, so that memory is only read and written in whole runs.
"""

from itertools import product
from math import ceil, prod

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..isa import Access, Affine, Builder, Program, Role, itemsize
from ..kernels.limits import P
from ..kernels.windows import Axis, Strip, windows_across
from .op import Lowered
from .window_axes import window_axes

__all__ = ["fold", "unfold"]

TILE_BYTES = 32 * 1024  # of the patches of a strip, per partition


class _Patches:
    """patches[p, tap, y, x] = in[p, y * stride + ..., x * stride + ...], 0 beyond the border; or
    out[p, :] = the sum of the patches that an element is in, which `adds` them.

    Planes pass in strips of `own` rows: of the patches, or, where they are added, of the planes.
    """

    def __init__(
        self, planes: int, height: Axis, width: Axis, dtype: str, cores: int, *, adds: bool
    ) -> None:
        self.b = b = Builder(f"{'fold' if adds else 'unfold'} {planes} planes", cores=cores)
        planes = ceil(planes / cores)
        self.planes, self.height, self.width, self.adds = planes, height, width, adds
        self.taps = height.kernel * width.kernel
        whole, patches = (
            (planes, height.size, width.size),
            (planes, self.taps, height.out, width.out),
        )
        roles = (Role.OUTPUT, Role.INPUT) if adds else (Role.INPUT, Role.OUTPUT)
        self.whole = b.hbm("out" if adds else "in", whole, dtype, roles[0])
        self.patches = b.hbm("patches", patches, dtype, roles[1])
        self.windows = windows_across(height, width, 1, self._row_bytes, forward=not adds)
        across, of_plane = (max(n) for n in zip(*map(self._widths, self.windows), strict=True))
        row = self.taps * across * itemsize(dtype)
        rows = max(1, int(TILE_BYTES / row))
        if adds:
            rows = max(1, rows // 2) * height.stride
            self.strips = height.backward(min(rows, height.size))
        else:
            self.strips = height.forward(min(rows, height.out))
        self.made = max(s.count for s in self.strips)
        self.span = max(s.span for s in self.strips)
        inner = self.span if adds else self.made
        plane = (self.made if adds else self.span) * of_plane
        self.cut = b.sbuf("cut", self.taps * inner * across, dtype, slots=2)
        self.plane = b.sbuf("plane", plane, "float32" if adds else dtype, slots=2)
        self.result = b.sbuf("result", plane, dtype, slots=2) if adds else self.plane

    def _row_bytes(self, need: int, made: int) -> float:
        """Two slots of the patches and of the plane, whose sums are float32."""
        size = itemsize(self.whole.dtype)
        if self.adds:
            return 2 * size * self.taps * need + (8 + 2 * size) * made
        return 2 * size * (need + self.taps * made)

    def _widths(self, wide: Strip) -> tuple[int, int]:
        """Columns of a window of the patches, and of the plane."""
        return (wide.span, wide.count) if self.adds else (wide.count, wide.span)

    def build(self) -> Program:
        b = self.b
        for wide, high in product(self.windows, self.strips):
            self.wide = wide
            for p0, planes in b.tiles(self.planes, P):
                with b.loop(high.repeat) as j:
                    b.fresh(*{self.cut, self.plane, self.result})
                    if self.adds:
                        self._fold(high, p0, planes, j)
                    else:
                        self._unfold(high, p0, planes, j)
        return b.build()

    def _unfold(self, high: Strip, p0: Affine, planes: int, j: Affine) -> None:
        b, rows = self.b, high.count
        here = self.plane.rows(planes, high.span * self.wide.span)
        b.load(here, self._rows(p0, planes, j * high.step + high.low, high.span))
        inside = len(high.taps) == self.height.kernel and len(self.wide.taps) == self.width.kernel
        taps = (*high.taps, *self.wide.taps)
        if not inside or any(t.count < n for t, n in zip(taps, self._full(rows), strict=True)):
            b.emit("memset", self.cut.rows(planes, self.taps * rows * self.wide.count), value=0.0)
        self._over_taps(high, planes, rows)
        first = j * rows + high.first
        b.store(self._cut_there(p0, planes, first, rows), self._cut(planes, rows))

    def _full(self, rows: int) -> list[int]:
        return [rows] * self.height.kernel + [self.wide.count] * self.width.kernel

    def _fold(self, high: Strip, p0: Affine, planes: int, j: Affine) -> None:
        b, elements = self.b, high.count * self.wide.count
        b.load(
            self._cut(planes, high.span),
            self._cut_there(p0, planes, j * high.step + high.low, high.span),
        )
        b.emit("memset", self.plane.rows(planes, elements), value=0.0)
        self._over_taps(high, planes, high.span)
        done = self.result.rows(planes, elements)
        b.emit("tensor_copy", done, self.plane.rows(planes, elements))
        b.store(self._rows(p0, planes, j * high.count + high.first, high.count), done)

    def _over_taps(self, high: Strip, planes: int, rows: int) -> None:
        """Every tap's view of the plane to or from its place among `rows` rows of the patches."""
        across, size = self._widths(self.wide)
        for h in high.taps:
            for w in self.wide.taps:
                number = h.k * self.width.kernel + w.k
                # `own` are rows of the result: of the patches when cutting, of the plane if adding
                y, y_plane = (h.there, h.own) if self.adds else (h.own, h.there)
                x, x_plane = (w.there, w.own) if self.adds else (w.own, w.there)
                inner = ((across, h.count), (1, w.count))
                at = (number * rows + y) * across + x
                cut = self.cut.lanes(planes, *inner, at=at)
                inner = ((self.height.stride * size, h.count), (self.width.stride, w.count))
                plane = self.plane.lanes(planes, *inner, at=y_plane * size + x_plane)
                if self.adds:
                    self.b.emit("tensor_tensor", plane, plane, cut, op="add")
                else:
                    self.b.emit("tensor_copy", cut, plane)

    def _rows(self, p0: Affine, planes: int, y: Affine, rows: int) -> Access:
        size, wide = self.width.size, self.wide
        first, count = (wide.first, wide.count) if self.adds else (wide.low, wide.span)
        at = p0 * (self.height.size * size) + y * size + first
        return self.whole.lanes(planes, *_columns(size, rows, count), at=at)

    def _cut(self, planes: int, rows: int) -> Access:
        run = rows * self._widths(self.wide)[0]
        return self.cut.lanes(planes, (run, self.taps), (1, run))

    def _cut_there(self, p0: Affine, planes: int, y: Affine, rows: int) -> Access:
        area, size, wide = self.height.out * self.width.out, self.width.out, self.wide
        first, count = (wide.low, wide.span) if self.adds else (wide.first, wide.count)
        at = p0 * (self.taps * area) + y * size + first
        return self.patches.lanes(planes, (area, self.taps), *_columns(size, rows, count), at=at)


def _columns(size: int, rows: int, count: int) -> list[tuple[int, int]]:
    """`count` columns of rows of `size`."""
    return [(1, rows * size)] if count == size else [(size, rows), (1, count)]


# --- from calls ---


def _patched(call: Call, target: Target, whole: TensorArg, at: int, *, adds: bool) -> Program:
    """The program of a call whose planes are `whole`, and whose windows begin at argument `at`."""
    kernel, dilation, padding, stride = (call.argument(at + k) for k in range(4))
    sizes = whole.shape[-2:]
    spans = zip(sizes, kernel, dilation, padding, stride, strict=True)
    outs = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, d, p, s in spans]
    height, width = window_axes(sizes, outs, kernel, stride, padding, dilation)
    planes = prod(whole.shape[:-2])
    return _Patches(planes, height, width, whole.dtype, target.cores, adds=adds).build()


def unfold(call: Call, target: Target) -> Lowered:
    """im2col"""
    x = call.tensors[0]
    program = _patched(call, target, x, 1, adds=False)
    return (labelled(program, {"in": x, "patches": call.out}),)


def fold(call: Call, target: Target) -> Lowered:
    """col2im"""
    x, out = call.tensors[0], call.out
    program = _patched(call, target, out, 2, adds=True)
    return (labelled(program, {"patches": x, "out": out}),)
