"""Running sums, products and extremes: along rows on the Vector engine, down columns as products
with a triangle of ones, and of one long run by both.
"""

from functools import partial
from math import ceil, inf
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..chip import Chip
from ..isa import Access, Builder, Program, Role
from ..kernels.cumulate_runs import cumulate_runs
from ..kernels.down_columns import LEAST, cumulate_down, extremes_down, logarithms_down
from ..kernels.limits import BANK, WIDE, P, evenly
from ..kernels.reduce_leading import share_of
from ..kernels.runs import run_of, runs
from ..kernels.scan_few_rows import cumulate_few, extremes_few, logarithms_few, suits_few
from ..kernels.triangle import triangle
from .op import Lowered, Lowering, around
from .row_by_row import down, few_or_many, of_rows, row_by_row, unchanged

__all__ = ["Prefix", "extremes", "logarithms", "scan"]

TOGETHER = 2048  # of a partition, where one run lies on all of them (chosen)
LONG = 1024  # elements of a single row from which on all partitions share it (chosen)

# op0 and op1 of tensor_tensor_scan, what the other operand holds, and the first state.
STEPS = {
    "add": ({"op0": "multiply", "op1": "add"}, 1.0, 0.0),
    "multiply": ({"op0": "multiply", "op1": "add"}, 0.0, 1.0),
    "max": ({"op0": "max", "op1": "add"}, 0.0, -inf),
    "min": ({"op0": "min", "op1": "add"}, 0.0, inf),
}


class Prefix:
    """Sums of a run that lies on all partitions, tile after tile: `start` and all before."""

    def __init__(self, b: Builder, together: int, start: float = 0.0) -> None:
        self.b = b
        self.unit = b.sbuf("unit", together, "float32")
        self.sums = b.sbuf("sums", together, "float32", slots=2)
        self.carry = b.sbuf("carry", 1, "float32")
        self.last, self.base = (b.sbuf(n, 1, "float32", slots=2) for n in ("last", "base"))
        self.psum = b.psum("partitions before", 2, slots=2)
        self.ones, self.before = triangle(b, inclusive=False)
        b.emit("memset", self.unit.rows(P, together), value=1.0)
        b.emit("memset", self.carry.rows(P, 1), value=start)

    def over(self, values: Access, rows: int, count: int) -> Access:
        """Sums up to and with each of `values`; the next tile goes on from them."""
        b = self.b
        b.fresh(self.sums, self.last, self.base, self.psum)
        sums, unit = self.sums.rows(rows, count), self.unit.rows(rows, count)
        last, base = self.last.rows(rows, 1), self.base.rows(rows, 1)
        b.emit("tensor_tensor_scan", sums, unit, values, op0="multiply", op1="add")
        b.emit("tensor_copy", last, self.sums.rows(rows, 1, count - 1))
        before, every = self.psum.rows(rows, 1), self.psum.rows(P, 1, 1)
        b.emit("nc_matmul", before, self.before.rows(rows, rows), last)
        b.emit("nc_matmul", every, self.ones.rows(rows, P), last)
        b.emit("tensor_tensor", base, before, self.carry.rows(rows, 1), op="add")
        carry = self.carry.rows(P, 1)
        b.emit("tensor_tensor", carry, every, carry, op="add")
        b.emit("tensor_scalar", sums, sums, base, op0="add")
        return sums


def cumulate_rows(
    rows: int, columns: int, *, op: str, chip: Chip, dtype: str = "float32", out_dtype: str = "",
    cores: int = 1,
) -> Program:  # fmt: skip
    """out[r, c] = in[r, 0] op ... op in[r, c], scanned on the Vector engine in float32."""
    rows = ceil(rows / cores)
    b = Builder(f"cumulate_{op} {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (rows, columns), out_dtype or dtype, Role.OUTPUT)
    wide = evenly(columns, WIDE // 2)  # one tile comes, one is scanned, one goes
    data, result = b.sbuf("data", wide, dtype, slots=3), b.sbuf("result", wide, "float32", slots=3)
    other, last = b.sbuf("unit", wide, "float32"), b.sbuf("last", 1, "float32", slots=2)
    ops, unit, start = STEPS[op]
    b.emit("memset", other.rows(P, wide), value=unit)
    for r0, size in b.tiles(rows, P):
        b.fresh(last)
        b.emit("memset", last.rows(size, 1), value=start)
        for c0, count in b.tiles(columns, wide):
            b.fresh(data, result)
            at = r0 * columns + c0
            b.load(data.rows(size, count), source.rows(size, count, at))
            values, constant = data.rows(size, count), other.rows(size, count)
            operands = (constant, values) if op == "add" else (values, constant)
            done = result.rows(size, count)
            b.emit("tensor_tensor_scan", done, *operands, last.rows(size, 1), **ops)  # type: ignore[arg-type]
            b.emit("tensor_copy", last.rows(size, 1), result.rows(size, 1, count - 1))
            b.store(out.rows(size, count, at), done)
    return b.build()


def logarithms_of_rows(
    rows: int, columns: int, *, chip: Chip, dtype: str = "float32", cores: int = 1
) -> Program:
    """out[r, c] = log(exp(in[r, 0]) + ... + exp(in[r, c])).

    With m the largest so far, sums of exp(x - m) are scanned, each times exp(the m before - m). All
    m are finite, so that infinity less m is infinity.
    """
    rows = ceil(rows / cores)
    b = Builder(f"cumulate_exp {rows}x{columns}", cores=cores)
    source, out = (b.hbm(n, (rows, columns), dtype, role)
                   for n, role in (("in", Role.INPUT), ("out", Role.OUTPUT)))  # fmt: skip
    wide = evenly(columns, WIDE // 2)
    data, done = (b.sbuf(n, wide, dtype, slots=2) for n in ("data", "done"))
    power, fade = (b.sbuf(n, wide, "float32") for n in ("power", "fade"))
    top = b.sbuf("top", wide + 1, "float32", slots=2)  # the first is that of the chunk before
    most, last = b.sbuf("most", wide, "float32"), b.sbuf("last", 1, "float32", slots=2)
    b.emit("memset", most.rows(P, wide), value=-LEAST)
    for r0, size in b.tiles(rows, P):
        b.fresh(last, top)
        total, before = last.rows(size, 1), top.rows(size, 1)
        b.emit("memset", total, value=0.0)
        b.emit("memset", before, value=LEAST)
        for c0, count in b.tiles(columns, wide):
            b.fresh(data, done)
            x, to, p, f, high = (t.rows(size, count) for t in (data, done, power, fade, most))
            now, then = top.rows(size, count, 1), top.rows(size, count)
            b.load(x, source.rows(size, count, r0 * columns + c0))
            b.emit("tensor_tensor_scan", now, x, high, before, op0="max", op1="min")
            b.emit("tensor_tensor", p, x, now, op="subtract")
            b.emit("activation", p, p, op="exp")
            b.emit("tensor_tensor", f, then, now, op="subtract")
            b.emit("activation", f, f, op="exp")
            b.emit("tensor_tensor_scan", p, f, p, total, op0="multiply", op1="add")
            b.emit("tensor_copy", total, power.rows(size, 1, count - 1))
            b.emit("activation", p, p, op="log")
            b.emit("tensor_tensor", to, p, now, op="add")
            b.emit("tensor_copy", before, top.rows(size, 1, count))
            b.store(out.rows(size, count, r0 * columns + c0), to)
    return b.build()


def extremes_of_rows(
    rows: int, columns: int, *, op: str, chip: Chip, dtype: str = "float32", cores: int = 1
) -> Program:
    """values[r, c] = the largest or smallest of in[r, :c + 1], index[r, c] = where it is last."""
    rows = ceil(rows / cores)
    b = Builder(f"running {op} {rows}x{columns}", cores=cores)
    source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
    outs = [b.hbm(n, (rows, columns), d, Role.OUTPUT)
            for n, d in (("values", dtype), ("index", "int32"))]  # fmt: skip
    wide = evenly(columns, WIDE // 2)
    data = b.sbuf("data", wide, dtype, slots=2)
    best, here = (b.sbuf(n, wide, "float32", slots=2) for n in ("best", "here"))
    where = b.sbuf("where", wide, "float32", slots=2)
    zeros, order = b.sbuf("zeros", wide, "float32"), b.sbuf("order", wide, "float32")
    lasts = [b.sbuf(n, 1, "float32", slots=2) for n in ("last value", "last place", "chunk")]
    b.emit("memset", zeros.rows(P, wide), value=0.0)
    b.emit("iota", order.rows(P, wide), channel=0, step=1, base=0)
    ops, _, start = STEPS[op]
    for r0, size in b.tiles(rows, P):
        b.fresh(*lasts)
        value, place, chunk = (t.rows(size, 1) for t in lasts)
        for column, first in ((value, start), (place, 0.0), (chunk, 0.0)):
            b.emit("memset", column, value=first)
        for c0, count in b.tiles(columns, wide):
            b.fresh(data, best, here, where)
            at = r0 * columns + c0
            x, y, hit, found, zero, places = (
                t.rows(size, count) for t in (data, best, here, where, zeros, order)
            )
            b.load(x, source.rows(size, count, at))
            b.emit("tensor_tensor_scan", y, x, zero, value, **ops)  # type: ignore[arg-type]
            b.emit("tensor_tensor", hit, x, y, op="equal")
            b.emit("tensor_scalar", found, places, chunk, op0="add")
            b.emit("tensor_tensor", hit, hit, found, op="multiply")
            b.emit("tensor_tensor_scan", found, hit, zero, place, op0="max", op1="add")
            for column, tile, out in ((value, best, outs[0]), (place, where, outs[1])):
                b.emit("tensor_copy", column, tile.rows(size, 1, count - 1))
                b.store(out.rows(size, count, at), tile.rows(size, count))
            b.emit("tensor_scalar", chunk, chunk, op0="add", imm0=float(count))
    return b.build()


def cumulate_run(
    count: int, *, chip: Chip, dtype: str = "float32", out_dtype: str = "", start: float = 0.0
) -> Program:
    """out[i] = start + the sum of in[: i + 1], on all partitions of one core."""
    b = Builder(f"cumulate_add {count}")
    source = b.hbm("in", (count,), dtype, Role.INPUT)
    out = b.hbm("out", (count,), out_dtype or dtype, Role.OUTPUT)
    q = min(TOGETHER, ceil(count / P))
    data = b.sbuf("data", q, dtype, slots=2)
    prefix = Prefix(b, q, start)
    for at, rows, wide in runs(b, count, q):
        b.fresh(data)
        values = data.rows(rows, wide)
        b.load(values, run_of(source, at, rows, wide, q))
        b.store(run_of(out, at, rows, wide, q), prefix.over(values, rows, wide))
    return b.build()


def cumulate_columns(
    outer: int, rows: int, columns: int, *, chip: Chip, dtype: str = "float32",
    out_dtype: str = "", cores: int = 1,
) -> Program:  # fmt: skip
    """out[o, r, c] = the sum of in[o, : r + 1, c]: a triangle of ones times rows, and a carry."""
    outer, columns = share_of(outer, columns, cores)
    b = Builder(f"cumulate columns {outer}x{rows}x{columns}", cores=cores)
    source = b.hbm("in", (outer * rows, columns), dtype, Role.INPUT)
    out = b.hbm("out", (outer * rows, columns), out_dtype or dtype, Role.OUTPUT)
    wide = evenly(columns, BANK)
    raw, result = b.sbuf("raw", wide, dtype, slots=2), b.sbuf("result", wide, "float32", slots=2)
    data = raw if dtype == "float32" else b.sbuf("data", wide, "float32", slots=2)
    carry = b.sbuf("carry", wide, "float32", slots=2)
    psum, total = b.psum("sums", BANK, slots=2), b.psum("total", BANK, slots=2)
    ones, before = triangle(b, inclusive=True)
    with b.loop(outer) as o:
        for c0, count in b.tiles(columns, wide):
            b.fresh(carry)
            kept = carry.rows(1, count)
            b.emit("memset", kept, value=0.0)
            for r0, size in b.tiles(rows, P):
                b.fresh(*{raw, data}, result, psum, total)
                at = (o * rows + r0) * columns + c0
                values = data.rows(size, count)
                b.load(raw.rows(size, count), source.rows(size, count, at))
                if data is not raw:
                    b.emit("tensor_copy", values, raw.rows(size, count))
                sums, done = psum.rows(size, count), result.rows(size, count)
                b.emit("nc_matmul", sums, before.rows(size, size), values)
                b.emit("nc_matmul", sums, ones.rows(1, size), kept)
                b.emit("nc_matmul", total.rows(1, count), ones.rows(size, 1), values)
                b.emit("tensor_copy", done, sums)
                b.emit("tensor_tensor", kept, total.rows(1, count), kept, op="add")
                b.store(out.rows(size, count, at), done)
    return b.build()


# --- from calls ---


def _around(call: Call) -> tuple[int, int, int]:
    """Elements before, along and after the dimension."""
    return around(call.tensors[0], call.argument(1, -1))


def scan(op: str) -> Lowering:
    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        if not t.numel:
            return ()
        outer, count, inner = _around(call)
        options: dict[str, Any] = {
            "chip": target.chip, "dtype": t.dtype, "out_dtype": call.out.dtype,
        }  # fmt: skip
        held = _in_order(call)
        if count == 1 and inner > 1:
            return (unchanged(held, target),)
        if inner == 1 and outer == 1 and count > LONG and op == "add":
            return (labelled(cumulate_run(count, **options), held),)
        options["cores"] = target.cores
        many, few, columns = (
            partial(program, op=op) for program in (cumulate_rows, cumulate_few, cumulate_down)
        )
        rows = few_or_many(many, few, suits_few)
        along = of_rows(outer * inner, count, rows, columns, target, **options)
        if inner == 1:
            return (labelled(along, held),)
        ways = [columns(outer, count, inner, **options)]
        if op == "add":
            ways.append(cumulate_columns(outer, count, inner, **options))
            ways += _runs(outer, count, inner, **options)
        return down(call, target, along, ways, held)

    return lower


def _runs(outer: int, rows: int, columns: int, *, cores: int, **options: Any) -> list[Program]:
    """Runs of rows on partitions; a single block on one core, or with columns shared by cores."""
    counts = {cores} if outer >= cores else {1, cores}
    return [cumulate_runs(outer, rows, columns, cores=n, **options) for n in sorted(counts)]


def _in_order(call: Call) -> dict[str, TensorArg]:
    return {"in": call.tensors[0], "out": call.out}


def logarithms(call: Call, target: Target) -> Lowered:
    """Logcumsumexp."""
    rows = few_or_many(logarithms_of_rows, logarithms_few, suits_few)
    return row_by_row(_around, rows, _in_order, logarithms_down)(call, target)


def extremes(op: str) -> Lowering:
    """Cummax and cummin, with places."""

    def held(call: Call) -> dict[str, TensorArg]:
        names = zip(("values", "index"), call.outputs, strict=False)
        return {"in": call.tensors[0], **dict(names)}

    many, few, columns = (
        partial(program, op=op) for program in (extremes_of_rows, extremes_few, extremes_down)
    )
    return row_by_row(_around, few_or_many(many, few, suits_few), held, columns)
