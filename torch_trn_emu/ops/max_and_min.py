"""The largest or smallest of rows with their places, and max and min of any kind."""

from functools import partial
from math import ceil, prod
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import permuted
from ..isa import Program
from ..kernels.down_columns import largest_down
from ..kernels.eights_of_rows import eights_of_rows
from ..kernels.limits import WIDE, P
from ..kernels.row_max import LEAST, largest_of_rows
from .elementwise import lower_elementwise
from .faster import faster
from .op import Lowered, Lowering
from .reductions import collapsed, order_of, reduced_dims, reduction, simple
from .row_by_row import few_or_many, row_by_row
from .sorting import few, select_largest

__all__ = ["extreme", "largest"]


def _along(call: Call) -> tuple[int, int, int]:
    t = call.tensors[0]
    dims = reduced_dims(call, t)
    outer, rows, inner = collapsed(t.shape, dims)
    if rows == 1:
        inner = prod(t.shape[max(dims, default=0) + 1 :])
        outer //= inner
    return outer, rows, inner


def largest(sign: float) -> Lowering:
    """The largest (or, with sign -1, smallest) value of each row and its place."""
    cut = partial(_largest_of_few, sign=sign)
    many = partial(_largest_of_many, sign=sign)
    rows = few_or_many(many, cut, lambda r, n, cores: few(r, cores))
    return row_by_row(_along, rows, _largest_in, partial(largest_down, sign=sign))


def _largest_of_many(rows: int, columns: int, *, sign: float, **options: Any) -> Program:
    """A partition has whole rows, or works through a long one."""
    target, ways = Target(options["chip"], options["cores"]), []
    if columns <= WIDE:
        ways.append((eights_of_rows(rows, columns, range(1), sign=sign, **options),))
    if columns >= LEAST:
        ways.append((largest_of_rows(rows, columns, sign=sign, **options),))
    return faster(ways, target)[0]


def _largest_of_few(rows: int, columns: int, **options: Any) -> Program:
    """Each row is cut over several partitions."""
    pieces = P // ceil(rows / options["cores"])
    if columns // pieces >= LEAST:
        return largest_of_rows(rows, columns, pieces=pieces, **options)
    return select_largest(rows, columns, 1, **options)


def _largest_in(call: Call) -> dict[str, TensorArg]:
    """What the buffers of `largest_of_rows` stand for: values and places, or one of them."""
    t = call.tensors[0]
    names = ("index",) if call.name.startswith("arg") else ("values", "index")
    x = permuted(t, order_of(t, reduced_dims(call, t)))
    return {"in": x, **dict(zip(names, call.outputs, strict=False))}


def extreme(op: str, sign: float) -> Lowering:
    """Max or min: of two tensors, of one, or along a dimension with places."""
    plain, placed = reduction(simple(op)), largest(sign)

    def lower(call: Call, target: Target) -> Lowered:
        if len(call.tensors) > 1:
            return lower_elementwise(
                Call(f"aten::{op}imum", call.arguments, call.results, call.policy), target
            )
        return (placed if len(call.outputs) > 1 else plain)(call, target)

    return lower
