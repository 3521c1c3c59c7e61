"""Programs that work along rows, and what stands for them where a column is a single element."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..isa import Program
from ..kernels.pointwise import constant, copy, pointwise
from .elementwise import conversion
from .op import Lowered, Lowering, flat

__all__ = ["row_by_row", "unchanged"]


def row_by_row(
    split: Callable[[Call], tuple[int, int, int]],
    program: Callable[..., Program],
    buffers: Callable[[Call], Mapping[str, TensorArg]],
) -> Lowering:
    """`program(rows, columns, ...)` of calls that `split` sees as [rows, columns, 1]; `buffers`
    says what the program's buffers stand for.
    """

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        if not t.numel:
            return ()
        outer, rows, inner = split(call)
        if inner > 1 and rows == 1:
            return (unchanged(buffers(call), target),)
        if inner > 1:
            raise KeyError(f"{call.name} along columns")
        options = {"dtype": t.dtype, "chip": target.chip, "cores": target.cores}
        return (labelled(program(outer, rows, **options), buffers(call)),)

    return lower


def unchanged(held: Mapping[str, TensorArg], target: Target) -> Program:
    """What is made of columns of one element, by the names of a program's buffers: `index` is 0,
    every other result is the operand.
    """
    results = {name: t for name, t in held.items() if name != "in"}
    given = [] if list(results) == ["index"] else [held["in"]]
    if any(conversion(held["in"].dtype, t.dtype) for n, t in results.items() if n != "index"):
        raise KeyError("a copy that converts as torch does not")
    makes = {n: constant(0.0) if n == "index" else copy() for n in results}
    steps = [replace(step, dtype=results[n].dtype) for n, step in makes.items()]
    elements = held["in"].numel
    program = pointwise(
        "columns of one element", elements, [t.dtype for t in given], steps[-1].dtype, steps,
        outputs=range(len(steps)), chip=target.chip, cores=target.cores,
    )  # fmt: skip
    stored = {f"out{k or ''}": flat(t, elements) for k, t in enumerate(results.values())}
    return labelled(program, {f"in{k}": flat(t, elements) for k, t in enumerate(given)} | stored)
