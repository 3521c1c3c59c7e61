"""Places of numbers among sorted boundaries, counted on the Vector engine; draws from a row's odds.

A partition has a row of boundaries, or all have the same ones; a number is compared with them all
in one instruction, which adds up how many are not less. So NaN comes after all, as in torch.
"""

from dataclasses import replace
from math import ceil, prod

from ..calls import Call, Target
from ..calls.labels import labelled, made
from ..isa import Builder, Program, Role
from ..kernels.limits import WIDE, P
from .elementwise import elementwise
from .formulas import steps_of
from .op import Lowered, dense
from .random import exponential, uniform
from .scans import scan
from .sorting import topk

__all__ = ["multinomial", "search"]

TOGETHER = 1024  # numbers of a partition that are brought together (chosen)
# That an exponential number is taken to be (chosen): its inverse stays finite.
LEAST = 1e-30


def counted(
    rows: int, boundaries: int, numbers: int, *, shared: bool, right: bool, dtype: str,
    cores: int = 1,
) -> Program:  # fmt: skip
    """out[r, n] = how many boundaries[r, :] are less than in[r, n], or equal (`right`).

    shared  all rows have one row of boundaries
    """
    rows = ceil(rows / cores)
    b = Builder(f"search {numbers} of {rows} in {boundaries}", cores=cores)
    source = b.hbm("in", (rows, numbers), dtype, Role.INPUT)
    edges = b.hbm("boundaries", (1 if shared else rows, boundaries), dtype, Role.INPUT)
    out = b.hbm("out", (rows, numbers), "int32", Role.OUTPUT)
    wide, together = min(boundaries, WIDE), min(numbers, TOGETHER)
    row, data = b.sbuf("row", wide, dtype, slots=2), b.sbuf("numbers", together, dtype, slots=2)
    values = b.sbuf("values", together, "float32", slots=2)
    less, found = b.sbuf("less", wide, "float32"), b.sbuf("found", together, "float32", slots=2)
    of_chunk = b.sbuf("of chunk", 1, "float32", slots=2)
    places = b.sbuf("places", together, "int32", slots=2)
    op = "greater" if right else "greater_equal"
    for r0, size in b.tiles(rows, P):
        for n0, count in b.tiles(numbers, together):
            b.fresh(data, values, found, places)
            there = source.box((numbers, size), (1, count), at=r0 * numbers + n0)
            b.load(data.rows(size, count), there)
            b.emit("tensor_copy", values.rows(size, count), data.rows(size, count))
            b.emit("memset", found.rows(size, count), value=float(boundaries))
            for c0, some in b.tiles(boundaries, wide):
                b.fresh(row)
                at = c0 if shared else r0 * boundaries + c0
                pitch = 0 if shared else boundaries
                its = edges.box((pitch, size), (1, some), at=at)
                b.load(row.rows(size, some), its)
                with b.loop(count) as n:
                    b.fresh(of_chunk)
                    one, to = values.rows(size, 1, n), found.rows(size, 1, n)
                    here = of_chunk.rows(size, 1)
                    both = (less.rows(size, some), here)
                    b.emit("tensor_scalar_reduce", both, row.rows(size, some), one, op0=op,
                           op="add")  # fmt: skip
                    b.emit("tensor_tensor", to, to, here, op="subtract")
            b.emit("tensor_copy", places.rows(size, count), found.rows(size, count))
            to = out.box((numbers, size), (1, count), at=r0 * numbers + n0)
            b.store(to, places.rows(size, count))
    return b.build()


# --- from calls ---


def search(call: Call, target: Target) -> Lowered:
    """Bucketize and searchsorted; of one row of boundaries, the numbers lie on all partitions."""
    tensors = [t for t in call.tensors if t.shape]
    edges, *others = tensors if call.name == "searchsorted" else tensors[::-1]
    if len(others) != 1 or edges.dtype != others[0].dtype:
        raise KeyError(f"{call.name} of a number, by a sorter, or between dtypes")
    numbers = others[0]
    if not edges.numel:
        return ()
    right = call.argument(3, False) is True or "right" in call.arguments
    shared = len(edges.shape) == 1
    rows = min(P * target.cores, numbers.numel) if shared else prod(edges.shape[:-1])
    each = ceil(numbers.numel / rows)
    program = counted(
        ceil(numbers.numel / each) if shared else rows, edges.shape[-1], each, shared=shared,
        right=right, dtype=edges.dtype, cores=target.cores,
    )  # fmt: skip
    return (labelled(program, {"in": numbers, "boundaries": edges, "out": call.out}),)


def multinomial(call: Call, target: Target) -> Lowered:
    """Without replacement: the largest of odds over exponential numbers. With it: where uniform
    numbers fall among the sums of the odds.
    """
    odds, samples = call.tensors[0], int(call.argument(1, 1))
    rows, columns = odds.shape if len(odds.shape) == 2 else (1, odds.numel)
    if samples == 1 or call.argument(2, False) is not True:
        return _largest_odds(call, rows, columns, samples, target)
    sums, drawn = (
        made("sums", (rows, columns), "float32"),
        made("drawn", (rows, samples), "float32"),
    )
    whole = replace(odds, shape=(rows, columns), strides=(columns, 1))
    summed = scan("add")(Call("aten::cumsum", (whole, -1), (sums,)), target)
    steps = steps_of(lambda total: uniform(total.made) * total, 1)
    last = tuple(replace(v, shape=(rows, 1), offset=columns - 1) for v in sums.views)
    total = replace(dense((rows, 1), "float32"), views=last)
    scaled = elementwise("numbers up to the sum", steps, [total], drawn, target)
    found = counted(rows, columns, samples, shared=False, right=True, dtype="float32",
                    cores=target.cores)  # fmt: skip
    found = labelled(found, {"in": drawn, "boundaries": sums, "out": call.out})
    return (*summed, scaled, found)


def _largest_odds(call: Call, rows: int, columns: int, samples: int, target: Target) -> Lowered:
    odds = call.tensors[0]
    steps = steps_of(lambda x: exponential(x.made).maximum(LEAST).reciprocal() * x, 1)
    keys = made("keys", (rows, columns), "float32")
    drawn = elementwise("odds over exponential numbers", steps, [odds], keys, target)
    out = replace(dense((rows, samples), "int64"), views=call.out.views)
    places = (made("largest", (rows, samples), "float32"), out)
    chosen = topk(Call("aten::topk", (keys, samples, -1, True, True), places), target)
    return (drawn, *chosen)
