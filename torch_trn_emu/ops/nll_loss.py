"""The negative log likelihood of classes and its gradient: one element of each row, by DMA.

A pixel of an image is a row whose classes lie a plane apart. An ignored row takes class 0 with a
weight of 0, so nothing branches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from ..kernels.entries import integers
from ..kernels.limits import P
from ..kernels.runs import clear, run_of, runs
from .op import Lowered

__all__ = ["nll", "nll_backward"]

TOGETHER = 512  # rows that a partition takes at once (chosen)
NONE, MEAN = 0, 1  # at::Reduction
# Weight to divide a gradient by (chosen): where all rows are ignored it is 0, not NaN.
LEAST = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """`images` x `rows` rows of `classes`; a row's next class is `apart` elements further."""

    images: int
    rows: int
    classes: int
    apart: int
    dtype: str
    reduction: int
    ignored: int
    weighted: bool

    @property
    def elements(self) -> int:
        return self.images * self.rows * self.classes

    @property
    def step(self) -> int:
        """Elements from a row to the next."""
        return self.classes if self.apart == 1 else 1

    def shared(self, cores: int) -> "_Rows":
        if self.images >= cores:
            return replace(self, images=ceil(self.images / cores))
        return replace(self, rows=ceil(self.rows / cores))


def _rows_of(call: Call, x: TensorArg, target_at: int) -> _Rows:
    """From the arguments after the input: target, weight, reduction, ignore_index."""
    _, weight, reduction, ignored = (call.argument(target_at + k) for k in range(4))
    shape = x.shape if len(x.shape) > 1 else (1, *x.shape)
    images, classes, pixels = shape[0], shape[1], prod(shape[2:])
    flat = len(shape) == 2
    return _Rows(
        images=1 if flat else images,
        rows=images if flat else pixels,
        classes=classes,
        apart=1 if flat else pixels,
        dtype=x.dtype,
        reduction=MEAN if reduction is None else int(reduction),
        ignored=-100 if ignored is None else int(ignored),
        weighted=weight is not None,
    )


class _Chosen:
    """Where the chosen classes of a tile of rows are, and the weights of the rows."""

    def __init__(self, b: Builder, spec: _Rows) -> None:
        self.b, self.spec = b, spec
        self.together = max(1, min(TOGETHER, ceil(spec.rows / P)))
        self.target = b.hbm("target", (spec.images * spec.rows,), "int32", Role.INPUT)
        integers = ("target tile", "counts", "class", "number")
        self.raw, self.counts, self.found, self.number = (self.tile(n, "int32") for n in integers)
        self.weights = self.tile("weights", "float32")
        if spec.weighted:
            self.table = b.hbm("weight", (spec.classes, 1), spec.dtype, Role.WEIGHT)
            self.taken = self.tile("class weights", spec.dtype)
        self.start = b.sbuf("starts", self.together, "int32")
        whole = self.start.rows(P, self.together)
        b.emit("iota", whole, channel=self.together * spec.step, step=spec.step, base=0)

    def tile(self, name: str, dtype: str) -> Buffer:
        return self.b.sbuf(name, self.together, dtype, slots=2)

    def tiles(self) -> Iterator[tuple[Affine, Affine, int, int]]:
        """(row of all, first element of its classes, partitions, rows of each)."""
        b, spec = self.b, self.spec
        with b.loop(spec.images) as image:
            for first, size, count in runs(b, spec.rows, self.together):
                at = first + image * spec.rows
                yield at, first * spec.step + image * (spec.rows * spec.classes), size, count

    def prepare(self, at: Affine, size: int, count: int) -> tuple[Access, Access]:
        """(numbers of the chosen elements, weights of the rows)."""
        b, spec = self.b, self.spec
        b.fresh(self.raw, self.counts, self.found, self.number, self.weights)
        tiles = (self.raw, self.counts, self.found, self.number, self.weights)
        raw, counts, found, number, weights = (t.rows(size, count) for t in tiles)
        b.load(raw, run_of(self.target, at, size, count, self.together))
        integers(b, "tensor_scalar", counts, raw, op0="not_equal", imm0=spec.ignored)
        integers(b, "tensor_tensor", found, raw, counts, op="multiply")
        integers(b, "tensor_scalar", number, found, op0="multiply", imm0=spec.apart)
        start = self.start.rows(size, count)
        integers(b, "tensor_tensor", number, number, start, op="add")
        b.emit("tensor_copy", weights, counts)
        if spec.weighted:
            b.fresh(self.taken)
            taken, table = self.taken.rows(size, count), self.table.rows(spec.classes, 1)
            b.emit("dma_gather", taken, table, found, queue="weights")
            b.emit("tensor_tensor", weights, weights, taken, op="multiply")
        return number, weights

    def reach(self, hbm: Buffer, base: Affine, size: int, count: int) -> Access:
        """The elements that the numbers of a tile count in."""
        spec, last = self.spec, (size - 1) * self.together + count - 1
        elements = last * spec.step + (spec.classes - 1) * spec.apart + 1
        return hbm.box((1, elements), (1, 1), at=base)


def nll_loss(spec: _Rows, *, cores: int = 1) -> Program:
    """Out = -x[target] * weight of each row, or their sum or mean, with the weights' sum."""
    spec = spec.shared(cores) if spec.reduction == NONE else spec
    b = Builder(
        f"nll_loss {spec.rows}x{spec.classes}", cores=cores if spec.reduction == NONE else 1
    )
    x = b.hbm("x", (spec.elements,), spec.dtype, Role.INPUT)
    chosen = _Chosen(b, spec)
    picked, loss = chosen.tile("picked", spec.dtype), chosen.tile("loss", "float32")
    whole = spec.images * spec.rows if spec.reduction == NONE else 1
    out = b.hbm("out", (whole,), spec.dtype, Role.OUTPUT)
    if spec.reduction == NONE:
        stored = chosen.tile("stored", spec.dtype)
    else:
        sums, part = b.sbuf("sums", 2, "float32"), b.sbuf("part", 1, "float32", slots=4)
        b.emit("memset", sums.rows(P, 2), value=0.0)
    for at, base, size, count in chosen.tiles():
        number, weights = chosen.prepare(at, size, count)
        b.fresh(picked, loss)
        here, made = picked.rows(size, count), loss.rows(size, count)
        b.emit("dma_gather", here, chosen.reach(x, base, size, count), number, queue="classes")
        b.emit("tensor_tensor", made, here, weights, op="multiply")
        if spec.reduction == NONE:
            b.fresh(stored)
            to = stored.rows(size, count)
            b.emit("tensor_scalar", to, made, op0="multiply", imm0=-1.0)
            b.store(run_of(out, at, size, count, chosen.together), to)
            continue
        for k, values in enumerate((made, weights)):
            b.fresh(part)
            b.emit("tensor_reduce", part.rows(size, 1), values, op="add")
            total = sums.rows(size, 1, k)
            b.emit("tensor_tensor", total, total, part.rows(size, 1), op="add")
    if spec.reduction != NONE:
        _finish(b, spec, sums, out)
    return b.build()


def _finish(b: Builder, spec: _Rows, sums: Buffer, out: Buffer) -> None:
    """The partitions' sums added by a product with ones; a mean divides by the weights."""
    ones, psum = b.sbuf("ones", 1, "float32"), b.psum("total", 2)
    both, inverse = b.sbuf("both", 2, "float32"), b.sbuf("inverse", 1, "float32")
    stored = b.sbuf("stored", 2, spec.dtype)
    weight = b.hbm("total_weight", (1,), spec.dtype, Role.OUTPUT)
    b.emit("memset", ones.rows(P, 1), value=1.0)
    b.emit("nc_matmul", psum.rows(1, 2), ones.rows(P, 1), sums.rows(P, 2))
    b.emit("tensor_copy", both.rows(1, 2), psum.rows(1, 2))
    loss = both.rows(1, 1)
    if spec.reduction == MEAN:
        b.emit("reciprocal", inverse.rows(1, 1), both.rows(1, 1, 1))
        b.emit("tensor_tensor", loss, loss, inverse.rows(1, 1), op="multiply")
    b.emit("tensor_scalar", stored.rows(1, 1), loss, op0="multiply", imm0=-1.0)
    b.emit("tensor_copy", stored.rows(1, 1, 1), both.rows(1, 1, 1))
    for k, to in enumerate((out, weight)):
        b.store(to.box((1, 1), (1, 1)), stored.rows(1, 1, k))


def nll_loss_gradient(spec: _Rows, *, cores: int = 1) -> Program:
    """dx[target] = -g * weight, for a mean over the weights' sum; 0 elsewhere."""
    spec = spec.shared(cores)
    b = Builder(f"nll_loss gradient {spec.rows}x{spec.classes}", cores=cores)
    each = spec.reduction == NONE
    g = b.hbm("g", (spec.images * spec.rows if each else 1,), spec.dtype, Role.INPUT)
    out = b.hbm("dx", (spec.elements,), spec.dtype, Role.OUTPUT)
    clear(b, out, spec.elements)
    chosen = _Chosen(b, spec)
    stored = chosen.tile("stored", spec.dtype)
    if each:
        given = chosen.tile("g tile", spec.dtype)
    else:
        scale = _scale(b, spec, g)
    for at, base, size, count in chosen.tiles():
        number, weights = chosen.prepare(at, size, count)
        b.fresh(stored)
        to = stored.rows(size, count)
        if each:
            b.fresh(given)
            here = given.rows(size, count)
            b.load(here, run_of(g, at, size, count, chosen.together))
            b.emit("tensor_tensor", weights, weights, here, op="multiply")
            b.emit("tensor_scalar", to, weights, op0="multiply", imm0=-1.0)
        else:
            shared = scale.rows(size, 1)
            b.emit("tensor_scalar", to, weights, shared, op0="multiply", op1="multiply", imm1=-1.0)
        b.emit("dma_scatter", chosen.reach(out, base, size, count), to, number, queue="classes")
    return b.build()


def _scale(b: Builder, spec: _Rows, g: Buffer) -> Buffer:
    """The gradient of the sum on every partition, over the weights' sum for a mean."""
    raw, scale = b.sbuf("g and weight", 2, spec.dtype), b.sbuf("scale", 1, "float32")
    b.load(raw.rows(P, 1), g.box((0, P), (1, 1)))
    b.emit("tensor_copy", scale.rows(P, 1), raw.rows(P, 1))
    if spec.reduction == MEAN:
        weight = b.hbm("total_weight", (1,), spec.dtype, Role.INPUT)
        inverse = b.sbuf("inverse", 1, "float32")
        b.load(raw.rows(P, 1, 1), weight.box((0, P), (1, 1)))
        over, total = inverse.rows(P, 1), scale.rows(P, 1)
        b.emit("tensor_scalar", over, raw.rows(P, 1, 1), op0="max", imm0=LEAST)
        b.emit("reciprocal", over, over)
        b.emit("tensor_tensor", total, total, over, op="multiply")
    return scale


def nll(call: Call, target: Target) -> Lowered:
    x = call.tensors[0]
    spec = _rows_of(call, x, 1)
    program = nll_loss(spec, cores=target.cores)
    held = {"x": x, "target": call.argument(1), "weight": call.argument(2)}
    held |= dict(zip(("out", "total_weight"), call.outputs, strict=False))
    return (labelled(program, held, outer=_outer(spec, program)),)


def _outer(spec: _Rows, program: Program) -> dict[str, int]:
    """How cores share the rows of each image, where they do not share the images."""
    if spec.images >= program.cores:
        return {}
    logits = dict.fromkeys(("x", "dx"), spec.images * (spec.classes if spec.apart != 1 else 1))
    return logits | dict.fromkeys(("target", "g", "out"), spec.images)


def nll_backward(call: Call, target: Target) -> Lowered:
    x = call.tensors[1]
    spec = _rows_of(call, x, 2)
    program = nll_loss_gradient(spec, cores=target.cores)
    places = {"g": 0, "target": 2, "weight": 3, "total_weight": 6}
    held = {n: call.argument(k) for n, k in places.items()}
    return (labelled(program, {**held, "dx": call.out}, outer=_outer(spec, program)),)
