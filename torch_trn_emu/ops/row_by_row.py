"""Programs that work along rows, and what stands for them along columns: the same after a turn of
the dimension, or a program that works down columns, whichever takes less time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled, made, permuted
from ..isa import Program
from ..kernels.columns import are_short
from ..kernels.pointwise import constant, copy, pointwise
from .copies import copied
from .elementwise import conversion
from .faster import faster
from .op import Lowered, Lowering, around, flat

__all__ = ["along_last", "down", "few_or_many", "of_rows", "row_by_row", "unchanged"]


def row_by_row(
    split: Callable[[Call], tuple[int, int, int]],
    program: Callable[..., Program],
    buffers: Callable[[Call], Mapping[str, TensorArg]],
    columns: Callable[..., Program],
) -> Lowering:
    """`program(rows, columns, ...)` of calls that `split` sees as [rows, columns, 1], and
    `columns(outer, rows, columns, ...)` of others; `buffers` says what the programs' buffers stand
    for. The dimension is the call's second argument.
    """

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        outer, rows, inner = split(call)
        held = buffers(call)
        if rows == 1 and inner > 1:
            return (unchanged(held, target),)
        options = {"dtype": t.dtype, "chip": target.chip, "cores": target.cores}
        along = of_rows(outer * inner, rows, program, columns, target, **options)
        if inner == 1:
            return (labelled(along, held),)
        return down(call, target, along, [columns(outer, rows, inner, **options)], held)

    return lower


def few_or_many(
    many: Callable[..., Program], few: Callable[..., Program],
    suits: Callable[[int, int, int], bool],
) -> Callable[..., Program]:  # fmt: skip
    """A program over rows: `many` has one on each partition, `few` cuts each over several, and is
    taken where it `suits` rows, columns and cores, and takes less time.
    """

    def program(rows: int, columns: int, **options: Any) -> Program:
        ways = [(many(rows, columns, **options),)]
        if suits(rows, columns, options["cores"]):
            ways.append((few(rows, columns, **options),))
        return faster(ways, Target(options["chip"], options["cores"]))[0]

    return program


def of_rows(
    rows: int, columns: int, program: Callable[..., Program], down_columns: Callable[..., Program],
    target: Target, **options: Any,
) -> Program:  # fmt: skip
    """`program(rows, columns, ...)`, or `down_columns` of short rows, if that takes less time."""
    ways = [(program(rows, columns, **options),)]
    if are_short(rows, columns, 1):
        ways.append((down_columns(rows, columns, 1, **options),))
    return faster(ways, target)[0]


def down(
    call: Call, target: Target, along: Program, columns: Sequence[Program],
    held: Mapping[str, TensorArg],
) -> Lowered:  # fmt: skip
    """The fastest of `columns`, and of `along` rows that the call's dimension is turned to.

    held  what the buffers of all programs stand for: "in" and results
    """
    x = call.tensors[0]
    dim = int(call.argument(1, -1)) % len(x.shape)
    outer, size, _ = around(x, dim)
    outs = {n: t for n, t in held.items() if n != "in"}
    split = {"in": outer * size} | {
        n: outer * size if t.numel == x.numel else outer for n, t in outs.items()
    }
    shared = {} if outer >= target.cores else split
    ways: list[Lowered] = [(labelled(program, held, outer=shared),) for program in columns]
    return faster([*ways, along_last(x, dim, outs, along, target)], target)


def along_last(
    x: TensorArg, dim: int, outs: Mapping[str, TensorArg], program: Program, target: Target
) -> Lowered:
    """A program over rows, along a dimension that is turned to be the last; results are turned back
    if they have it.

    outs  results by the name of the buffer
    """
    last = _last(x, dim)
    turned = made("turned", last.shape, x.torch_dtype)
    programs = list(copied(last, turned, target))
    if all(t.numel * x.shape[dim] == x.numel for t in outs.values()):
        return (*programs, labelled(program, {"in": turned, **outs}))  # one of each row, in order
    there = {n: _last(out, dim) for n, out in outs.items()}
    found = {n: made(f"turned {n}", t.shape, t.torch_dtype) for n, t in there.items()}
    programs.append(labelled(program, {"in": turned, **found}))
    for n, t in there.items():
        programs += copied(found[n], t, target)
    return tuple(programs)


def _last(t: TensorArg, dim: int) -> TensorArg:
    """With a dimension moved to the end."""
    return permuted(t, [d for d in range(len(t.shape)) if d != dim] + [dim])


def unchanged(held: Mapping[str, TensorArg], target: Target) -> Program:
    """What is made of columns of one element, by the names of a program's buffers: `index` is 0,
    every other result is the operand.
    """
    results = {name: t for name, t in held.items() if name != "in"}
    given = [] if list(results) == ["index"] else [held["in"]]
    if _converts(held):
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


def _converts(held: Mapping[str, TensorArg]) -> bool:
    """Whether a copy of the operand to a result would convert as torch does not."""
    made_of = [t for name, t in held.items() if name not in ("in", "index")]
    return any(conversion(held["in"].dtype, t.dtype) for t in made_of)
