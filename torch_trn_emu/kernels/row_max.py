"""The largest value of every row and where it is: max8 and nc_find_index8, chunk by chunk."""

from math import ceil

from ..chip import Chip
from ..isa import Builder, Program, Role, elements_of, rows_of
from .limits import WIDE, P, evenly

__all__ = ["largest_of_rows"]


def largest_of_rows(
    rows: int, columns: int, *, sign: float, chip: Chip, dtype: str = "float32", cores: int = 1
) -> Program:
    """values[r] = the largest of in[r, :] * sign, times sign; index[r] = where it is first."""
    rows = ceil(rows / cores)
    b = Builder(f"largest {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    values = b.hbm("values", (rows, 1), dtype, Role.OUTPUT)
    index = b.hbm("index", (rows, 1), "int32", Role.OUTPUT)
    wide = max(8, evenly(columns, WIDE))  # max8 gives eight: short rows are filled up
    data = b.sbuf("data", wide, dtype, slots=2)
    signed = b.sbuf("data times sign", wide, "float32", slots=2)
    eight, where = b.sbuf("eight", 8, "float32", slots=2), b.sbuf("where", 8, "float32", slots=2)
    best, found, base, better = (
        b.sbuf(n, 1, "float32", slots=2) for n in ("best", "found", "base", "better")
    )
    value, place = b.sbuf("value", 1, dtype, slots=2), b.sbuf("place", 1, "int32", slots=2)

    for r0, size in b.tiles(rows, P):
        b.fresh(best, found, base, value, place)
        first, at, start = (rows_of(t, size, 1) for t in (best, found, base))
        b.emit("memset", first, value=float("-inf"))
        b.emit("memset", at, value=0.0)
        b.emit("memset", start, value=0.0)
        for c0, count in b.tiles(columns, wide):
            b.fresh(data, signed, eight, where, better)
            there = elements_of(source, (columns, size), (1, count), at=r0 * columns + c0)
            b.load(rows_of(data, size, count), there)
            held = max(8, count)
            if count < 8:
                b.emit("memset", rows_of(signed, size, held), value=float("-inf"))
            x = rows_of(signed, size, count)
            b.emit("tensor_scalar", x, rows_of(data, size, count), op0="multiply", imm0=sign)
            whole = rows_of(signed, size, held)
            b.emit("max8", rows_of(eight, size, 8), whole)
            b.emit("nc_find_index8", rows_of(where, size, 8), whole, rows_of(eight, size, 8))
            new, its = rows_of(eight, size, 1), rows_of(where, size, 1)
            is_better = rows_of(better, size, 1)
            b.emit("tensor_tensor", is_better, new, first, op="greater")
            b.emit("tensor_tensor", its, its, start, op="add")
            b.emit("select", at, is_better, its, at)
            b.emit("tensor_tensor", first, first, new, op="max")
            b.emit("tensor_scalar", start, start, op0="add", imm0=float(count))
        b.emit("tensor_scalar", rows_of(value, size, 1), first, op0="multiply", imm0=sign)
        b.emit("tensor_copy", rows_of(place, size, 1), at)
        b.store(rows_of(values, size, 1, r0), rows_of(value, size, 1))
        b.store(rows_of(index, size, 1, r0), rows_of(place, size, 1))
    return b.build()
