"""Numbers in a row: arange, range and linspace, made by GpSimd on all partitions."""

from math import ceil
from typing import Any

from ..calls import Call, Target
from ..calls.labels import labelled
from ..isa import Builder, Program, Role, affine
from ..kernels.limits import P
from ..kernels.runs import run_of, runs
from .op import Lowered

__all__ = ["numbers"]

TOGETHER = 8192  # numbers of a partition


def numbered(count: int, *, start: float, step: float, dtype: str) -> Program:
    """out[i] = start + i * step, counted in whole numbers and scaled after."""
    b = Builder(f"numbers {count}")
    out = b.hbm("out", (count,), dtype, Role.OUTPUT)
    q = min(TOGETHER, ceil(count / P))
    order, made = b.sbuf("order", q, "int32"), b.sbuf("numbers", q, dtype, slots=2)
    first, here = b.sbuf("first", 1, "float32"), b.sbuf("here", q, "float32", slots=2)
    b.emit("iota", order.rows(P, q), channel=q, step=1, base=0)
    whole = first.rows(P, 1)
    b.emit("memset", whole, value=0.0)
    for at, rows, size in runs(b, count, q):
        b.fresh(made, here)
        if not affine(at).terms:  # not in a loop, which moves it on
            b.emit("memset", whole, value=float(affine(at).const))
        place, to = here.rows(rows, size), made.rows(rows, size)
        b.emit("tensor_scalar", place, order.rows(rows, size), first.rows(rows, 1),
               op0="add")  # fmt: skip
        b.emit("tensor_scalar", to, place, op0="multiply", imm0=step, op1="add", imm1=start)
        b.store(run_of(out, at, rows, size, q), to)
        if affine(at).terms:
            b.emit("tensor_scalar", whole, whole, op0="add", imm0=float(P * q))
    return b.build()


def _line(call: Call, count: int) -> tuple[float, float]:
    """(start, step)"""
    overload = call.op.partition(".")[2]
    given: list[Any] = [a for a in call.arguments[:3] if isinstance(a, (int, float))]
    given = [a for a in given if not isinstance(a, bool)]
    if call.name == "linspace":
        if len(given) < 3:
            raise KeyError("linspace between tensors")
        return float(given[0]), (given[1] - given[0]) / max(1, count - 1)
    if call.name == "arange" and not overload.startswith("start"):
        return 0.0, 1.0
    return float(given[0]), float(given[2]) if len(given) > 2 else 1.0


def numbers(call: Call, target: Target) -> Lowered:
    out = call.out
    start, step = _line(call, out.numel)
    program = numbered(out.numel, start=start, step=step, dtype=out.dtype)
    return (labelled(program, {"out": out}),)
