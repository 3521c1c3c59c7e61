"""The largest of every row in order, eight at a time, or by a sorting network where that is faster.

max8 finds the eight largest and nc_match_replace8 takes them out and says where they were. Many of
bfloat16 are found by GpSimd's topk first (`kernels/largest_of_groups.py`), and a single one of a
rank by counting (`kernels/rank_by_halves.py`). Rows
longer than a tile give their largest chunk by chunk, which are then worked on as one row. What is
compared is half the number, so that infinity is finite and more than what was taken out. topk finds
NaN as the engines order it, which is not public; the others make numbers of it first.
"""

from collections.abc import Callable, Mapping
from math import ceil, inf, prod
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..chip import Chip
from ..formats import FORMATS
from ..isa import Builder, Program, fits
from ..kernels.eights_of_rows import eights_of_rows
from ..kernels.largest_of_chunks import Largest, eights
from ..kernels.largest_of_groups import group_cycles, largest_of_groups
from ..kernels.limits import WIDE, P, evenly
from ..kernels.rank_by_halves import halving_cycles, rank_by_halves
from ..kernels.sort_network import network_cycles, sort_rows
from .faster import faster
from .op import Lowered
from .row_by_row import along_last

__all__ = [
    "along_dimension",
    "few",
    "flat_sort",
    "found_in",
    "ordered",
    "select_largest",
    "sort",
    "topk",
]

FEW, LEAST = 64, 256  # rows that are cut over partitions, and columns of a piece (chosen)
MOST = 4096  # candidates of all chunks together (chosen)
KEYS = 6  # Vector cycles an element that keys take where NaN is one of them (documented)


def few(rows: int, cores: int) -> bool:
    """Whether rows are so few that each is cut over several partitions."""
    return ceil(rows / cores) <= FEW


def _by_eights(rows: int, columns: int, k: int) -> bool:
    """Whether the candidates of a row's chunks or pieces fit."""
    wide = _segment(rows, columns, k)
    return max(ceil(columns / wide), ceil(wide / WIDE)) * eights(k) <= MOST


def select_largest(
    rows: int, columns: int, k: int, *, sign: float, chip: Chip, dtype: str, cores: int = 1,
    first: int = 0, nan: bool = False,
) -> Program:  # fmt: skip
    """values[r, :], index[r, :] = the k largest of in[r, :] * sign, times sign, and where, without
    the `first` largest.

    nan  numbers may be NaN, which comes where torch has it
    """
    stored, nan = range(first, k), nan and dtype in FORMATS
    if not few(rows, cores) and columns <= WIDE:
        return eights_of_rows(
            rows, columns, stored, sign=sign, chip=chip, dtype=dtype, cores=cores, nan=nan
        )
    rows = ceil(rows / cores)
    b = Builder(f"top {k} of {rows}x{columns}", cores=cores)
    pieces = ceil(columns / _segment(rows, columns, k)) if rows <= FEW else 1
    return Largest(b, rows, columns, stored, sign, chip, dtype, pieces, WIDE, nan=nan).build()


def _segment(rows: int, columns: int, k: int) -> int:
    """Columns that a partition works on: few rows are cut so that all partitions have some, or
    nearly all of them if pieces then do not overlap.
    """
    if rows > FEW:
        return evenly(columns, WIDE)
    most = min(P // rows, columns // max(LEAST, 4 * eights(k)), max(1, MOST // eights(k)))
    pieces = next((n for n in range(most, most - most // 8, -1) if columns % n == 0), most)
    return ceil(columns / pieces) if pieces > 1 else evenly(columns, WIDE)


# --- from calls ---


def ordered(
    rows: int, columns: int, k: int, largest: bool, dtype: str, target: Target, first: int = 0,
    nan: bool = True,
) -> Program:  # fmt: skip
    """By eights, by groups of GpSimd, by counting or by a network: by estimates of cycles, groups
    by price.

    nan  numbers may be NaN, which comes where torch has it
    """
    options: dict[str, Any] = {
        "chip": target.chip, "cores": target.cores, "dtype": dtype, "first": first,
    }  # fmt: skip
    share = ceil(rows / target.cores)
    wide = _segment(share, columns, k)
    pieces = ceil(columns / wide) if share <= FEW else 1
    passed = ceil(share / max(1, P // pieces)) * (
        wide + pieces * eights(k) if pieces > 1 else columns
    )
    sign = 1.0 if largest else -1.0
    groups = group_cycles(share, columns, k) if dtype == "bfloat16" else inf
    keys = KEYS if nan and dtype in FORMATS else 0
    rounds = (2 * ceil(k / 8) + keys) * passed if _by_eights(share, columns, k) else inf
    network = network_cycles(share, columns) if columns > 8 or rounds == inf else inf
    halves = halving_cycles(share, columns, dtype) if k == first + 1 else inf
    rank = columns + 1 - k if largest else k  # from the smallest
    choices: list[tuple[float, Callable[[], Program]]] = [
        (groups, lambda: largest_of_groups(rows, columns, k, sign=sign, **options)),
        (rounds, lambda: select_largest(rows, columns, k, sign=sign, nan=nan, **options)),
        (halves, lambda: rank_by_halves(rows, columns, rank, dtype=dtype, cores=target.cores)),
        (network, lambda: sort_rows(rows, columns, k, descending=largest, **options)),
    ]  # fmt: skip
    ways: list[Lowered] = []
    for cycles, make in sorted(choices, key=lambda choice: choice[0]):
        if cycles < inf and fits(program := make(), target.chip):
            ways.append((program,))
            if cycles != groups:
                break
    return faster(ways, target)[0]


def along_dimension(x: TensorArg, dim: int, outs: Mapping[str, TensorArg], target: Target, k: int,
           largest: bool, first: int = 0, nan: bool = True) -> Lowered:  # fmt: skip
    """Along a dimension; one that is not the last is turned to be it, and the results back.

    outs  results by the name of the buffer: values, index
    """
    shape = x.shape or (1,)
    dim %= len(shape)
    rows, columns = prod(shape) // shape[dim], shape[dim]
    program = ordered(rows, columns, k, largest, x.dtype, target, first, nan)
    if prod(shape[dim + 1 :]) == 1:
        return (labelled(program, {"in": x, **outs}),)
    return along_last(x, dim, outs, program, target)


def found_in(call: Call, *names: str) -> dict[str, TensorArg]:
    """The results of a call by the names of buffers."""
    return dict(zip(names or ("values", "index"), call.outputs, strict=False))


def topk(call: Call, target: Target) -> Lowered:
    x, k, dim = call.tensors[0], int(call.argument(1, 1)), int(call.argument(2, -1))
    if not x.numel or not k:
        return ()
    largest = call.argument(3, True) is not False
    return along_dimension(x, dim, found_in(call), target, k, largest, nan=False)


def sort(call: Call, target: Target) -> Lowered:
    """Sort, argsort, msort; the order of equal elements is not kept."""
    x = call.tensors[0]
    if not x.numel:
        return ()
    stable = "stable" in call.op.partition(".")[2]
    rest = call.arguments[2 if stable else 1 :]
    dim = next((a for a in rest if isinstance(a, int) and not isinstance(a, bool)), None)
    descending = any(a is True for a in rest)
    dim = (0 if call.name == "msort" else -1) if dim is None else dim
    columns = x.shape[dim] if x.shape else 1
    outs = found_in(call, "index") if call.name == "argsort" else found_in(call)
    return along_dimension(x, dim, outs, target, columns, descending)


def flat_sort(call: Call, target: Target) -> Lowered:
    """All elements of a tensor."""
    x = (call.tensors or call.outputs)[0]
    if not x.numel:
        return ()
    program = ordered(1, x.numel, x.numel, False, x.dtype, target)
    return (labelled(program, {"in": x}),)
