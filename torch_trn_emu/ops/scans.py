"""Running sums, products, extremes and logarithms of sums, along a dimension or of one long run."""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..chip import Chip
from ..isa import Access, Builder, Program, Role
from ..kernels.columns import APART
from ..kernels.cumulate_runs import cumulate_runs
from ..kernels.down_columns import Down
from ..kernels.limits import WIDE, P, evenly
from ..kernels.runs import run_of, runs
from ..kernels.scan_few_rows import FewRows, suits_few
from ..kernels.scans import cumulate
from ..kernels.scans import extremes as running_extremes
from ..kernels.scans import logarithms as sums_of_exponentials
from ..kernels.triangle import triangle
from .op import Lowered, Lowering, around
from .row_by_row import down, few_or_many, of_rows, row_by_row, unchanged

__all__ = ["Prefix", "extremes", "logarithms", "scan"]

TOGETHER = 2048  # of a partition, where one run lies on all of them (chosen)
LONG = 1024  # elements of a single row from which on all partitions share it (chosen)


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


# --- from calls ---


def _around(call: Call) -> tuple[int, int, int]:
    """Elements before, along and after the dimension."""
    return around(call.tensors[0], call.argument(1, -1))


def _programs(
    name: str, steps: Callable[..., Program]
) -> tuple[Callable[..., Program], Callable[..., Program]]:
    """Of steps over a layout: programs over rows, or down columns of [outer, rows, columns]."""

    def many(rows: int, columns: int, *, chip: Chip, cores: int, **options: Any) -> Program:
        together = evenly(columns, WIDE // 2)
        return steps(Down(name, rows, columns, 1, cores, together=together, least=APART), **options)

    def few(rows: int, columns: int, *, chip: Chip, cores: int, **options: Any) -> Program:
        return steps(FewRows(name, rows, columns, cores), **options)

    def columns(
        outer: int, rows: int, columns: int, *, chip: Chip, cores: int, **options: Any
    ) -> Program:
        return steps(Down(name, outer, rows, columns, cores), **options)

    return few_or_many(many, few, suits_few), columns


def scan(op: str) -> Lowering:
    rows, columns = _programs(f"cumulate_{op}", partial(cumulate, op=op))

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
        along = of_rows(outer * inner, count, rows, columns, target, **options)
        if inner == 1:
            return (labelled(along, held),)
        ways = [columns(outer, count, inner, **options)]
        if op == "add":
            ways += _runs(outer, count, inner, **options)
        return down(call, target, along, ways, held)

    return lower


def _runs(
    outer: int, rows: int, columns: int, *, chip: Chip, cores: int, **options: Any
) -> list[Program]:
    """Runs of rows on partitions; a single block on one core, or with columns shared by cores."""
    counts = {cores} if outer >= cores else {1, cores}
    return [cumulate_runs(outer, rows, columns, cores=n, **options) for n in sorted(counts)]


def _in_order(call: Call) -> dict[str, TensorArg]:
    return {"in": call.tensors[0], "out": call.out}


def logarithms() -> Lowering:
    """Logcumsumexp."""
    rows, columns = _programs("cumulate_exp", sums_of_exponentials)
    return row_by_row(_around, rows, _in_order, columns)


def extremes(op: str) -> Lowering:
    """Cummax and cummin, with places."""

    def held(call: Call) -> dict[str, TensorArg]:
        names = zip(("values", "index"), call.outputs, strict=False)
        return {"in": call.tensors[0], **dict(names)}

    rows, columns = _programs(f"running {op}", partial(running_extremes, op=op))
    return row_by_row(_around, rows, held, columns)
