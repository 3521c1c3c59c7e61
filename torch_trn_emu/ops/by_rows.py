"""Copies whose runs are short, by way of rows in SBUF."""

from collections.abc import Mapping, Sequence
from math import ceil

from ..calls import Target, TensorArg
from ..calls.labels import labelled, spanned
from ..isa import Program
from ..kernels.strided_copy import Box
from ..kernels.strided_rows import OLD, rows_of_boxes, strided_rows

__all__ = ["SMALL", "by_rows"]

SMALL = 4096  # elements that DMA may move one by one (chosen)


def by_rows(
    name: str,
    target: Target,
    sources: Mapping[str, TensorArg],
    out: TensorArg,
    boxes: Sequence[Box],
    constant: float = 0,
    *,
    keeps: bool = False,
) -> Program | None:
    """The program of boxes that are the same in every row; None where their runs are long.

    keeps  what lies between the boxes in the result stays as it was
    """
    if any(t.dtype != out.dtype for t in sources.values()):
        return None
    rows = rows_of_boxes(boxes, out.span if keeps else out.numel, out.dtype, keeps=keeps)
    if rows is None or out.numel <= SMALL:
        return None
    held = {**sources, OLD: out} if keeps else sources
    spans = {n: t.span for n, t in held.items() if n in rows.pitches}
    program = strided_rows(
        name, rows, spans, out.dtype, cores=target.cores, constant=float(constant)
    )
    stands = {n: t if t.contiguous else spanned(t) for n, t in {**held, "out": out}.items()}
    many = ceil(rows.count / target.cores)
    steps = {n: many * p for n, p in {**rows.pitches, "out": rows.pitch}.items()}
    before = {"out": stands["out"]} if keeps else {}
    return labelled(program, stands, before=before, steps=steps)
