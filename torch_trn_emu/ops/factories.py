"""Matrices and lists of places that are made on the core: eye, indices of triangles, repeats."""

from ..calls import Call, Target
from ..calls.labels import labelled, made, permuted
from ..isa import Builder, Program, Role
from ..kernels.entries import Indexed, Term, scatter_entries
from ..kernels.limits import WIDE, P, evenly
from .copies import copied
from .elementwise import lower_elementwise
from .masked_select import nonzero, past_end
from .op import Lowered
from .scans import cumulate_run
from .triangles import triangle

__all__ = ["eye", "repeated_places", "triangle_indices"]


def diagonal(rows: int, columns: int, *, dtype: str) -> Program:
    """Ones where row and column are the same, zeros elsewhere, on one core."""
    b = Builder(f"diagonal {rows}x{columns}")
    out = b.hbm("out", (rows, columns), dtype, Role.OUTPUT)
    wide = evenly(columns, WIDE)
    place, done = (b.sbuf(n, wide, d, slots=2) for n, d in (("place", "float32"), ("made", dtype)))
    for r0 in range(0, rows, P):
        size = min(P, rows - r0)
        for c0 in range(0, columns, wide):
            count = min(wide, columns - c0)
            b.fresh(place, done)
            here, to = place.rows(size, count), done.rows(size, count)
            b.emit("iota", here, channel=-1, step=1, base=c0 - r0)
            b.emit("tensor_scalar", to, here, op0="equal", imm0=0.0)
            b.store(out.rows(size, count, r0 * columns + c0), to)
    return b.build()


def eye(call: Call, target: Target) -> Lowered:
    out = call.out
    rows, columns = out.shape
    program = diagonal(rows, columns, dtype=out.dtype)
    return (labelled(program, {"out": out}),)


def triangle_indices(call: Call, target: Target) -> Lowered:
    """The places of ones in a triangle of them, then all rows before all columns."""
    out = call.out
    rows, columns, offset = (int(call.argument(k, 0)) for k in range(3))
    ones, half = (made(n, (rows, columns), "bool") for n in ("ones", "triangle"))
    found = made("places", (out.shape[1], 2), out.torch_dtype)
    filled = lower_elementwise(Call("aten::ones", ((rows, columns),), (ones,)), target)
    cut = triangle(lower=call.name == "tril_indices")
    kept = cut(Call("aten::tril", (ones, offset), (half,)), target)
    places = nonzero(Call("aten::nonzero", (half,), (found,)), target)
    parts = (filled, kept, places, copied(found, permuted(out, (1, 0)), target))
    return tuple(program for part in parts for program in part)


def repeated_places(call: Call, target: Target) -> Lowered:
    """repeat_interleave of counts: place i as often as its count says.

    A one is added where each place ends, which are the sums of the counts; how many have ended
    before an entry is the place it holds. One entry more is past the end.
    """
    repeats, out = call.tensors[0], call.out
    if call.op != "aten::repeat_interleave.Tensor":
        raise KeyError(f"{call.op} of a tensor's elements")
    n, size, chip = repeats.numel, out.numel + 1, target.chip
    ends = cumulate_run(n, chip=chip, dtype=repeats.dtype, out_dtype="int32")
    spec = Indexed(entries=size, entry=1, count=n, terms=(Term(size=size),))
    ones = scatter_entries(spec, dtype="int32", adds=True, zeroed=True, value=1.0)
    sums = cumulate_run(size, chip=chip, dtype="int32", out_dtype="int32")
    ended, marks = made("ends", (n,), "int32"), made("marks", (size,), "int32")
    return (labelled(ends, {"in": repeats, "out": ended}),
            labelled(ones, {"index": ended, "out": marks}),
            labelled(sums, {"in": marks, "out": past_end(out)}))  # fmt: skip
