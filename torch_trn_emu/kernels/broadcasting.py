"""Elementwise steps over operands that repeat: along rows, down columns, or everywhere."""

from collections.abc import Sequence
from typing import Any

from ..calls import Target, TensorArg
from ..isa import Program
from .limits import P
from .pointwise import Step, copy
from .rows import row_program
from .rows.arrange import arranged
from .rows.values import Input, Kind, Output, RowStep, Values

__all__ = ["alike", "broadcast", "how_it_repeats"]


def how_it_repeats(t: TensorArg, out: TensorArg) -> str:
    """How an operand repeats: "full", "row" (leading dims), "column" (trailing), "one", "other"."""
    if t.numel == out.numel:
        return "full"
    if t.numel == 1:
        return "one"
    rank = len(out.shape)
    shape = (1,) * (rank - len(t.shape)) + t.shape
    same = [a == b for a, b in zip(shape, out.shape, strict=False)]
    first = next(k for k, size in enumerate(shape) if size != 1)
    if all(same[first:]):  # worth its place on every partition when there are rows for them
        return "row" if out.numel >= P * t.numel or t.numel <= P else "other"
    last = max(k for k, size in enumerate(shape) if size != 1)
    if all(same[: last + 1]):  # its rows lie on partitions, which should not be few
        return "column" if 2 * t.numel >= P or out.numel <= P * t.numel else "other"
    return "other"


def alike(kinds: Sequence[str], operands: Sequence[TensorArg], out: TensorArg) -> list[str]:
    """The kinds, where only operands that repeat with the rows of the program do: others are
    "other".
    """
    each = _columns(operands, kinds, out)
    fits = {"row": each, "column": out.numel // max(1, each)}
    return [
        kind if t.numel == fits.get(kind, t.numel) else "other"
        for t, kind in zip(operands, kinds, strict=True)
    ]


def broadcast(
    name: str,
    steps: Sequence[Step],
    operands: Sequence[TensorArg],
    kinds: Sequence[str],
    out: TensorArg,
    target: Target,
) -> Program:
    """Rows on partitions, short ones side by side. A repeated row is loaded once for all; other
    patterns load as if full.
    """
    columns = _columns(operands, kinds, out)
    inputs = [Input(f"in{k}", t.dtype, Kind("full" if kind == "other" else kind))
              for k, (t, kind) in enumerate(zip(operands, kinds, strict=True))]  # fmt: skip
    made: list[RowStep] = []
    for s in steps or [copy()]:
        reads = tuple(inputs[r].name if r >= 0 else made[r].name for r in s.reads)
        dtype = s.dtype if s.dtype != "float32" else ""
        made.append(RowStep(f"step {len(made)}", s.opcode, reads, s.attributes, Kind.FULL, s.engine,
                            dtype))  # fmt: skip
    made = arranged(inputs, made, [made[-1].name], target.chip)
    values = Values(inputs, made, [Output(made[-1].name, out.dtype, "out")])
    options: dict[str, Any] = {"chip": target.chip, "cores": target.cores, "apart": True}
    return row_program(name, out.numel // columns, columns, values, **options)


def _columns(operands: Sequence[TensorArg], kinds: Sequence[str], out: TensorArg) -> int:
    """The length of a row: what the repeated row holds, else what one column's value covers."""
    for t, kind in zip(operands, kinds, strict=True):
        if kind == "row":
            return t.numel
    for t, kind in zip(operands, kinds, strict=True):
        if kind == "column":
            return max(1, out.numel // t.numel)
    return out.shape[-1] if out.shape and out.shape[-1] else 1
