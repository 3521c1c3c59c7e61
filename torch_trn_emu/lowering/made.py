"""Matrices and lists of places that are made on the core: eye, and indices of triangles."""

from ..chip import Chip
from ..isa import Builder, Program, Role, rows_of
from .call import Call, Target, TensorArg
from .compaction import nonzero
from .copies import copied
from .elementwise import lower_elementwise
from .limits import WIDE, P
from .op import Lowered, dense
from .triangles import triangle

__all__ = ["eye", "triangle_indices"]


def diagonal(rows: int, columns: int, *, chip: Chip, dtype: str) -> Program:
    """Ones where row and column are the same, zeros elsewhere, on one core."""
    b = Builder(f"diagonal {rows}x{columns}")
    out = b.hbm("out", (rows, columns), dtype, Role.OUTPUT)
    wide = min(columns, WIDE)
    place, made = (b.sbuf(n, wide, d, slots=2) for n, d in (("place", "float32"), ("made", dtype)))
    for r0 in range(0, rows, P):
        size = min(P, rows - r0)
        for c0 in range(0, columns, wide):
            count = min(wide, columns - c0)
            b.fresh(place, made)
            here, to = rows_of(place, size, count), rows_of(made, size, count)
            b.emit("iota", here, channel=-1, step=1, base=c0 - r0)
            b.emit("tensor_scalar", to, here, op0="equal", imm0=0.0)
            b.store(rows_of(out, size, count, r0 * columns + c0), to)
    return b.build()


def eye(call: Call, target: Target) -> Lowered:
    out = call.out
    if not out.numel:
        return ()
    rows, columns = out.shape
    return (diagonal(rows, columns, chip=target.chip, dtype=out.dtype),)


def triangle_indices(call: Call, target: Target) -> Lowered:
    """The places of ones in a triangle of them, then all rows before all columns."""
    out = call.out
    if not out.numel:
        return ()
    rows, columns, offset = (int(call.argument(k, 0)) for k in range(3))
    ones = dense((rows, columns), "bool")
    found = dense((out.shape[1], 2), out.torch_dtype)
    made = lower_elementwise(Call("aten::ones", ((rows, columns),), (ones,)), target)
    cut = triangle(lower=call.name == "tril_indices")
    kept = cut(Call("aten::tril", (ones, offset), (ones,)), target)
    places = nonzero(Call("aten::nonzero", (ones,), (found,)), target)
    by_row = TensorArg(out.torch_dtype, found.shape, (1, found.shape[0]))
    parts = (made, kept, places, copied(found, by_row, target))
    return tuple(program for part in parts if isinstance(part, tuple) for program in part)
