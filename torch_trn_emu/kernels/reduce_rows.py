"""Reductions over the middle of [rows, columns, inner], with work on elements before and on results
after, as programs over rows.
"""

from collections.abc import Iterator

from ..chip import Chip
from ..isa import Access, Attribute, Builder, Program
from .rows import row_program
from .rows.values import Input, Kind, Output, RowStep, Values, reduced, step

__all__ = ["Work", "apply", "reduce_rows"]

Work = tuple[tuple[str, tuple[tuple[str, Attribute], ...]], ...]  # opcodes and attributes


def reduce_rows(
    rows: int,
    columns: int,
    inner: int = 1,
    *,
    op: str,
    chip: Chip,
    dtype: str = "float32",
    out_dtype: str = "float32",
    cores: int = 1,
    before: Work = (),
    after: Work = (),
) -> Program:
    """out[r, i] = after(reduction by `op` of before(in[r, :, i])), rows split over the cores."""
    steps, value = list(_steps(before, "in", Kind.FULL)), "in"
    if steps:
        value = steps[-1].name
    steps.append(reduced("total", value, op))
    steps += _steps(after, "total", Kind.COLUMN)
    values = Values([Input("in", dtype)], steps, [Output(steps[-1].name, out_dtype, "out")])
    name = f"reduce_{op} {rows}x{columns}"
    return row_program(name, rows, columns, values, chip=chip, cores=cores, inner=inner)


def _steps(work: Work, value: str, kind: Kind) -> Iterator[RowStep]:
    for k, (opcode, attributes) in enumerate(work):
        name = f"{kind.value} {k}"
        yield step(name, opcode, value, kind=kind, **dict(attributes))  # type: ignore[arg-type]
        value = name


def apply(b: Builder, work: Work, to: Access, source: Access) -> None:
    """Instructions of one operand, one after the other: the first reads `source`, the last writes
    `to`, and those between stay in `to`, or in `source` if `to` holds less than float32.
    """
    for k, (opcode, attributes) in enumerate(work):
        last = k == len(work) - 1
        place = to if last or to.buffer.dtype == "float32" else source
        b.emit(opcode, place, source, **dict(attributes))  # type: ignore[arg-type]
        source = place
