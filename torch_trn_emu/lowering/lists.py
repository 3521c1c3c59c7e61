"""Rows of `_foreach_` operators: the elementwise row of the name over all tensors at once, and
reductions that give one value for every tensor.
"""

from collections import Counter
from math import ceil, inf, prod

from ..chip import Chip
from ..isa import Access, Affine, Builder, Program, Role
from .call import Call, Target, TensorArg
from .columns import NEUTRAL
from .copies import copied
from .elementwise import lower_elementwise
from .op import Lowered, flat
from .reduction import Work, apply

__all__ = ["foreach", "foreach_reduction", "reduce_each"]

P = 128
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
    first = lists[0][0]
    arguments: list[object] = []
    for a in call.arguments:
        if isinstance(a, tuple) and a:
            one = a[0]
            arguments.append(flat(one, total) if isinstance(one, TensorArg) else one)
        else:
            arguments.append(a)
    if plain == "copy" and len(lists) > 1:
        return copied(flat(lists[1][0], total), flat(first, total), target)
    single = Call(f"aten::{plain}", tuple(arguments), (flat(first, total),), call.policy)
    return lower_elementwise(single, target)


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
    program = reduce_each(
        tuple(sizes.items()),
        before=before,
        after=after,
        op="max" if order == inf else "add",
        dtype=tensors[0].dtype,
        chip=target.chip,
        cores=target.cores,
    )
    return (program,)


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
    data = b.sbuf("data", WIDE, dtype, slots=2)
    made = b.sbuf("made", WIDE, "float32", slots=2) if before else data
    each, best = (b.sbuf(n, 1, "float32", slots=2) for n in ("each", "best"))
    ones, result = b.sbuf("ones", 1, "float32"), b.sbuf("result", 1, out_dtype or dtype, slots=2)
    total, summed = b.psum("total", 1, slots=2), b.sbuf("summed", 1, "float32", slots=2)

    def box(buffer: object, rows: int, columns: int) -> Access:
        pattern = ((buffer.row_elements, rows), (1, columns))  # type: ignore[attr-defined]
        return Access(buffer=buffer, pattern=pattern)  # type: ignore[arg-type]

    def part(offset: Affine, rows: int, columns: int) -> None:
        b.fresh(data, each, *([made] if before else []))
        there = Access(buffer=source, offset=offset, pattern=((columns, rows), (1, columns)))
        b.load(box(data, rows, columns), there)
        apply(b, before, box(made, rows, columns), box(data, rows, columns))
        b.emit("tensor_reduce", box(each, rows, 1), box(made, rows, columns), op=op)
        kept = box(best, rows, 1)
        b.emit("tensor_tensor", kept, kept, box(each, rows, 1), op=op)

    b.emit("memset", box(ones, P, 1), value=1.0)
    first, start = 0, 0
    for elements, count in sizes:
        with b.loop(count) as i:
            b.fresh(best, total, summed, result)
            b.emit("memset", box(best, P, 1), value=NEUTRAL[op])
            for offset, some in b.tiles(elements, P * WIDE):
                width = max(1, min(WIDE, ceil(some / P)))
                rows, rest = divmod(some, width)
                at = offset + i * elements + start
                if rows:
                    part(at, rows, width)
                if rest:
                    part(at + rows * width, 1, rest)
            one, value = box(summed, 1, 1), box(result, 1, 1)
            if op == "add":
                b.emit("nc_matmul", box(total, 1, 1), box(ones, P, 1), box(best, P, 1))
                b.emit("tensor_copy", one, box(total, 1, 1))
            else:
                b.emit("tensor_partition_reduce", one, box(best, P, 1), op=op)
            if after:
                apply(b, after, value, one)
            else:
                b.emit("tensor_copy", value, one)
            b.store(Access(buffer=out, offset=i + first, pattern=((1, 1), (1, 1))), value)
        first, start = first + count, start + elements * count
    return b.build()
