"""Rows of `_foreach_` operators: the elementwise row of the name over all tensors at once, and
reductions that give one value for every tensor.
"""

from collections import Counter
from dataclasses import replace
from math import ceil, inf, prod

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role
from ..kernels.limits import P
from ..kernels.reduce_rows import Work, apply
from ..kernels.rows.values import NEUTRAL
from .copies import copied
from .elementwise import lower_elementwise
from .op import Lowered, flat

__all__ = ["foreach", "foreach_reduction", "reduce_each"]

WIDE = 4096


def _lists(call: Call) -> list[tuple[TensorArg, ...]]:
    return [a for a in call.arguments if isinstance(a, tuple) and a and isinstance(a[0], TensorArg)]


def foreach(call: Call, target: Target) -> Lowered:
    """The tensors of a list as one run of elements; of a list of scalars the first is for all."""
    plain = call.name.removeprefix("_foreach_")
    lists = _lists(call)
    total = sum(t.numel for t in lists[0])
    if not total:
        return ()
    arguments: list[object] = []
    for a in call.arguments:
        if isinstance(a, tuple) and a:
            arguments.append(_run(a, total) if isinstance(a[0], TensorArg) else a[0])
        else:
            arguments.append(a)
    stored = _run(call.outputs if len(call.outputs) == len(lists[0]) else lists[0], total)
    stored = replace(stored, torch_dtype=lists[0][0].torch_dtype)
    numbers = [a for a in call.arguments if isinstance(a, tuple) and a and a not in lists]
    if any(len(set(a)) > 1 for a in numbers):  # the first is priced for all
        stored = replace(stored, views=())
    if plain == "copy" and len(lists) > 1:
        return copied(_run(lists[1], total), stored, target)
    single = Call(f"aten::{plain}", tuple(arguments), (stored,), call.policy)
    return lower_elementwise(single, target)


def _run(tensors: tuple[TensorArg, ...], total: int) -> TensorArg:
    """Tensors one after the other, where together they have so many elements."""
    found = [t for t in tensors if t.numel]
    whole = sum(t.numel for t in found) == total and all(t.views for t in found)
    views = tuple(v for t in found for v in t.views) if whole else ()
    return replace(flat(tensors[0], total), views=views)


def foreach_reduction(call: Call, target: Target) -> Lowered:
    """The norm (1, 2 or infinity) or the maximum of every tensor."""
    tensors = _lists(call)[0]
    order = float(call.argument(1, 2)) if call.name.endswith("norm") else inf
    function = "" if call.name.endswith("max") else "abs" if order in (1, inf) else "square"
    before: Work = (("activation", (("op", function),)),) if function else ()
    after: Work = (("activation", (("op", "sqrt"),)),) if function == "square" else ()
    if order not in (1, 2, inf):
        raise KeyError(f"_foreach_norm of order {order}")
    sizes = Counter(prod(t.shape) for t in tensors)
    together = [k for size in sizes for k, t in enumerate(tensors) if t.numel == size]
    program = reduce_each(
        tuple(sizes.items()),
        before=before,
        after=after,
        op="max" if order == inf else "add",
        dtype=tensors[0].dtype,
        chip=target.chip,
        cores=target.cores,
    )
    if program.cores > 1 and len(sizes) > 1:  # a core has its part of the tensors of each size
        return (program,)
    outs = call.outputs if len(call.outputs) == len(tensors) else ()
    held = {"in": tuple(tensors[k] for k in together),
            "out": tuple(outs[k] for k in together if outs)}  # fmt: skip
    return (labelled(program, held),)


def reduce_each(
    sizes: tuple[tuple[int, int], ...],
    *,
    op: str,
    dtype: str,
    chip: Chip,
    out_dtype: str = "",
    cores: int = 1,
    before: Work = (),
    after: Work = (),
) -> Program:
    """out[i] = the reduction of tensor i by `op`, with what is done before and after.

    sizes  (elements, how many tensors), which lie one after the other
    """
    if cores > 1:
        sizes = tuple((elements, ceil(count / cores)) for elements, count in sizes)
    b = Builder(f"reduce_{op} of {sum(n for _, n in sizes)} tensors", cores=cores)
    source = b.hbm("in", (sum(s * n for s, n in sizes),), dtype, Role.INPUT)
    out = b.hbm("out", (sum(n for _, n in sizes),), out_dtype or dtype, Role.OUTPUT)
    tiles = _Each(b, source, op, before)
    result = b.sbuf("result", 1, out_dtype or dtype, slots=2)
    first, start = 0, 0
    for elements, count in sizes:
        with b.loop(count) as i:
            b.fresh(result)
            one, value = tiles.reduced(i * elements + start, elements), result.rows(1, 1)
            if after:
                apply(b, after, value, one)
            else:
                b.emit("tensor_copy", value, one)
            b.store(out.box((1, 1), (1, 1), at=i + first), value)
        first, start = first + count, start + elements * count
    return b.build()


class _Each:
    """One tensor after the other on all partitions, each worked into one element."""

    def __init__(self, b: Builder, source: Buffer, op: str, before: Work) -> None:
        self.b, self.source, self.op, self.before = b, source, op, before
        self.data = b.sbuf("data", WIDE, source.dtype, slots=2)
        self.made = b.sbuf("made", WIDE, "float32", slots=2) if before else self.data
        self.each, self.best, self.summed = (
            b.sbuf(n, 1, "float32", slots=2) for n in ("each", "best", "summed")
        )
        self.ones, self.total = b.sbuf("ones", 1, "float32"), b.psum("total", 1, slots=2)
        b.emit("memset", self.ones.rows(P, 1), value=1.0)

    def reduced(self, at: Affine, elements: int) -> Access:
        """The reduction of the tensor that starts at an element of the source."""
        b, op = self.b, self.op
        b.fresh(self.best, self.total, self.summed)
        b.emit("memset", self.best.rows(P, 1), value=NEUTRAL[op])
        for offset, some in b.tiles(elements, P * WIDE):
            width = max(1, min(WIDE, ceil(some / P)))
            rows, rest = divmod(some, width)
            if rows:
                self._part(at + offset, rows, width)
            if rest:
                self._part(at + offset + rows * width, 1, rest)
        one = self.summed.rows(1, 1)
        if op == "add":
            b.emit(
                "nc_matmul",
                self.total.rows(1, 1),
                self.ones.rows(P, 1),
                self.best.rows(P, 1),
            )
            b.emit("tensor_copy", one, self.total.rows(1, 1))
        else:
            b.emit("tensor_partition_reduce", one, self.best.rows(P, 1), op=op)
        return one

    def _part(self, at: Affine, rows: int, count: int) -> None:
        """A run of elements on `rows` partitions, into what the partitions hold."""
        b = self.b
        b.fresh(*{self.data, self.made}, self.each)
        data, made = self.data.rows(rows, count), self.made.rows(rows, count)
        there = self.source.box((count, rows), (1, count), at=at)
        b.load(data, there)
        apply(b, self.before, made, data)
        b.emit("tensor_reduce", self.each.rows(rows, 1), made, op=self.op)
        kept = self.best.rows(rows, 1)
        b.emit("tensor_tensor", kept, kept, self.each.rows(rows, 1), op=self.op)
