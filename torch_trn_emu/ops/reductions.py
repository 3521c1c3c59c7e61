"""Rows of reductions and norms: which dimensions a call works along."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf, prod
from types import MappingProxyType
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled, made, permuted
from ..isa import Attribute
from ..kernels.limits import BANK, P
from ..kernels.reduce_leading import LINE, beside, columns_outer, columns_reduced
from ..kernels.reduce_rows import Work, reduce_rows
from ..kernels.reduce_spread import moments_spread, reduce_spread, spreads
from ..kernels.rows.layout import lies_in_rows
from ..kernels.variance import moments_of_columns, moments_of_rows
from .elementwise import flattened, lower_elementwise
from .faster import faster
from .foreach import reduce_each
from .formulas import steps_of
from .normalization import ROW_OPS, row_op
from .op import Lowered, Lowering, around, flat

__all__ = [
    "Describe",
    "all_equal",
    "along_rows",
    "average",
    "collapsed",
    "correction_of",
    "how_many_numbers",
    "moments",
    "nan_of_rows",
    "nonzeros",
    "one_after_the_other",
    "order_of",
    "over_normalized",
    "p_norm",
    "reduced_dims",
    "reduction",
    "simple",
    "truth",
    "without_nan",
]

# rms_norm's when none is given: the distance from 1 to the next number of the dtype.
_EPS = MappingProxyType({"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10})
_ALONE = 8192  # elements of [rows, inner] that a partition holds at most (chosen)
_TILE = 400  # elements that a partition works through while an instruction starts (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """`after(reduction of before(x) by op)`."""

    op: str
    before: Work = ()
    after: Work = ()


Describe = Callable[[Call, int], Reduction]  # of how many elements


def _scalar(**attributes: Attribute) -> Work:
    return (("tensor_scalar", tuple(attributes.items())),)


def _act(op: str, scale: float = 1.0) -> Work:
    return (("activation", (("op", op), ("scale", scale))),)


def simple(op: str) -> Describe:
    return lambda call, n: Reduction(op=op)


def average(call: Call, n: int) -> Reduction:
    return Reduction(op="add", after=_scalar(op0="multiply", imm0=1.0 / n))


def truth(op: str) -> Describe:
    """Any or all: the largest or smallest of (x != 0)."""
    return lambda call, n: Reduction(op=op, before=_scalar(op0="not_equal", imm0=0.0))


def nonzeros(call: Call, n: int) -> Reduction:
    return Reduction(op="add", before=_scalar(op0="not_equal", imm0=0.0))


def how_many_numbers(call: Call, n: int) -> Reduction:
    """NaN is not one: it is not at least -inf."""
    return Reduction(op="add", before=_scalar(op0="greater_equal", imm0=-inf))


def nan_of_rows(call: Call, n: int) -> Reduction:
    """NaN where one is, else 0: the root of -1 or of 0."""
    after = _scalar(op0="add", imm0=-1.0) + _act("sqrt")
    return Reduction(op="min", before=_scalar(op0="greater_equal", imm0=-inf), after=after)


def p_norm(call: Call, n: int) -> Reduction:
    """Of any order: powers are exponentials of logarithms."""
    given = call.argument(1, 2.0)
    order = float(given) if isinstance(given, (int, float)) else 2.0
    if order == 2:
        return Reduction(op="add", before=_act("square"), after=_act("sqrt"))
    if abs(order) == inf:
        return Reduction(op="abs_max" if order > 0 else "abs_min")
    if order == 0:
        return nonzeros(call, n)
    if order == 1:
        return Reduction(op="add", before=_act("abs"))
    power = _act("abs") + _act("log") + _act("exp", order)
    return Reduction(op="add", before=power, after=_act("log") + _act("exp", 1 / order))


def reduced_dims(call: Call, t: TensorArg) -> tuple[int, ...]:
    """The dimensions reduced: named in the call, or all."""
    rank = len(t.shape)
    overload = call.op.partition(".")[2]
    if call.name == "norm" or call.name == "linalg_vector_norm":
        named = call.argument(2, ())
    elif "dim" in overload or call.name in _BY_DIM:
        named = call.argument(1, ())
    else:
        named = ()
    dims = named if isinstance(named, tuple) else (named,)
    chosen = (
        {d % rank for d in dims if isinstance(d, int) and not isinstance(d, bool)}
        if rank
        else set()
    )
    return tuple(sorted(chosen)) or tuple(range(rank))


_BY_DIM = frozenset(
    "amax amin argmax argmin logsumexp cumsum cumprod cummax _softmax _log_softmax aminmax nansum "
    "all any median kthvalue mode var std var_mean std_mean count_nonzero max min prod".split()
)


def collapsed(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, int, int]:
    """(outer, reduced, inner) sizes; dimensions of 1 do not count, others between fold outward."""
    kept = [(n, k in dims) for k, n in enumerate(shape) if n != 1]
    reduced = prod(n for n, r in kept if r)
    inner = 1
    while kept and not kept[-1][1]:
        inner *= kept.pop()[0]
    outer = prod(n for n, r in kept if not r)
    return (outer, reduced, inner) if reduced > 1 else (outer * inner, 1, 1)


def order_of(t: TensorArg, dims: tuple[int, ...]) -> list[int]:
    """Dimensions kept, then those reduced, then those kept at the end, as `collapsed` has them."""
    tail = len(t.shape)
    while tail and (tail - 1 not in dims or t.shape[tail - 1] == 1):
        tail -= 1
    kept = [d for d in range(tail) if d not in dims]
    return [*kept, *(d for d in range(tail) if d in dims), *range(tail, len(t.shape))]


def reduction(describe: Describe) -> Lowering:
    """By the Vector engine along rows, by ones or partition by partition along columns."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        outer, rows, inner = collapsed(t.shape, reduced_dims(call, t))
        spec = describe(call, rows)
        x, out = permuted(t, order_of(t, reduced_dims(call, t))), call.out
        steps: dict[str, Any] = {"op": spec.op, "before": spec.before, "after": spec.after}
        options = {**steps, "dtype": t.dtype, "out_dtype": out.dtype, "chip": target.chip}
        if outer == inner == 1 and rows > 1024:  # everything: rows first, then the partitions
            return (labelled(reduce_each(((rows, 1),), **options), {"in": x, "out": out}),)
        if _suits_rows(outer, rows, inner, target.cores):
            program = reduce_rows(outer, rows, inner, cores=target.cores, **options)
            return (labelled(program, {"in": x, "out": out}),)
        along = partial(columns_reduced, x, out, outer, rows, inner, target, **steps)
        if not spreads(outer, rows, inner, target.cores):
            return (along(),)
        spread = reduce_spread(outer, rows, inner, cores=target.cores, **options)
        split = columns_outer(outer, rows, target.cores)
        spread = labelled(spread, {"in": x, "out": out}, outer=split)
        return faster([(along(),), (spread,)], target)

    return lower


def _suits_rows(outer: int, rows: int, inner: int, cores: int, line: int = LINE) -> bool:
    """Whether a partition should reduce [rows, inner] alone, not a tile of rows at a time.

    By elements that a partition works through, and what instructions on tiles cost beside them.
    """
    if inner == 1 or rows * inner > _ALONE:
        return inner == 1
    lines = rows // beside(outer, rows, inner, cores, line)
    width = rows * inner / lines
    split = cores if outer >= cores or rows == lines else 1
    tiles = ceil(lines / P) * (width + _TILE) + _TILE
    by_columns = ceil(outer / split) * tiles if outer >= cores else tiles
    return ceil(outer / (P * cores)) * (rows * inner + _TILE) <= by_columns


def one_after_the_other(*lowerings: Lowering) -> Lowering:
    """The programs of several, each of which reads the operands and makes one result."""

    def lower(call: Call, target: Target) -> Lowered:
        each = [
            replace(call, results=call.results[k : k + 1] or call.results)
            for k in range(len(lowerings))
        ]
        parts = [lower_one(one, target) for lower_one, one in zip(lowerings, each, strict=True)]
        return tuple(program for part in parts for program in part)

    return lower


def without_nan(lowering: Lowering) -> Lowering:
    """Zeros for NaN, then another lowering."""

    def lower(call: Call, target: Target) -> Lowered:
        x = call.tensors[0]
        steps = steps_of(lambda x: x.equals(x).where(x, 0.0), 1)
        zeroed = made("without NaN", x.shape, x.torch_dtype)
        cleaned = flattened("nan to zero", steps, [x], flat(zeroed, x.numel), target)
        done = lowering(
            Call(call.op, (zeroed, *call.arguments[1:]), call.results, call.policy), target
        )
        return (cleaned, *done) if done else done

    return lower


def all_equal(call: Call, target: Target) -> Lowered:
    """Whether no element of two tensors differs."""
    x, y = call.tensors[:2]
    if x.shape != y.shape:
        return ()
    same, result = made("same", x.shape, "bool"), made("equal", (), "bool")
    compared = lower_elementwise(Call("aten::eq", (x, y), (same,)), target)
    reduced = reduction(truth("min"))(Call("aten::all", (same,), (result,)), target)
    return (*compared, *reduced)


def correction_of(call: Call) -> float:
    """What a variance's divisor is less than the number of elements: 1, or what the call says."""
    if "correction" in call.op:
        return float(call.argument(2, 1))
    flags = [a for a in call.arguments[1:] if isinstance(a, bool)]
    return float(flags[0]) if flags else 1.0


def moments(call: Call, target: Target) -> Lowered:
    """Variances or deviations, with means."""
    t = call.tensors[0]
    outer, rows, inner = collapsed(t.shape, reduced_dims(call, t))
    options: dict[str, Any] = {"less": correction_of(call), "root": "std" in call.name,
                               "dtype": t.dtype, "chip": target.chip,
                               "cores": target.cores}  # fmt: skip
    x = permuted(t, order_of(t, reduced_dims(call, t)))
    stored = {"in": x, **dict(zip(("var", "mean"), call.outputs, strict=False))}
    if _suits_rows(outer, rows, inner, target.cores, BANK):
        return (labelled(moments_of_rows(outer, rows, inner, **options), stored),)
    split = columns_outer(outer, rows, target.cores)
    split = {n: split.get("in" if n == "in" else "out", 1) for n in stored}
    program = labelled(moments_of_columns(outer, rows, inner, **options), stored, outer=split)
    if spreads(outer, rows, inner, target.cores):
        spread = moments_spread(outer, rows, inner, **options)
        return faster([(program,), (labelled(spread, stored, outer=split),)], target)
    return (program,)


def along_rows(name: str, places: Mapping[str, int], dim_at: int) -> Lowering:
    """An entry of ROW_OPS over dimension `dim_at` of the call; `places` has its inputs'."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        dim = call.argument(dim_at, -1)
        dim = dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim
        dims = reduced_dims(call, t) if isinstance(dim, tuple) else (dim % max(1, len(t.shape)),)
        if isinstance(dim, tuple):
            rows, columns, inner = collapsed(t.shape, dims)
            order = order_of(t, dims)
        else:
            rows, columns, inner = around(t, dim if isinstance(dim, int) else -1)
            order = list(range(len(t.shape)))
        if not lies_in_rows(rows, columns, inner):  # as if the rows lay there
            rows, inner = rows * inner, 1
            order = [d for d in range(len(t.shape)) if d not in dims] + [*dims][: len(t.shape)]
        # Cores share the columns of rows that are too few for them.
        shared = inner > 1 and rows < target.cores
        each = ceil(inner / target.cores) if shared else inner
        options: dict[str, Any] = {"chip": target.chip, "cores": target.cores, "inner": each}
        program = row_op(name, rows, columns, t.dtype, **options)
        held = {n: permuted(call.argument(at), order) for n, at in places.items()}
        whole, result = call.out.shape == t.shape, f"out {ROW_OPS[name].outputs}"
        held[result] = permuted(call.out, order) if whole else call.out
        split = dict.fromkeys(places, rows * columns) | {result: rows * columns if whole else rows}
        return (labelled(program, held, outer=split if shared else {}),)

    return lower


def over_normalized(name: str, places: Mapping[str, int]) -> Lowering:
    """Layer and RMS norm: a row is the normalized shape. Weights and biases may be None."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        shape = next(
            (a for a in call.arguments if isinstance(a, tuple) and a and isinstance(a[0], int)),
            None,
        )
        columns = prod(shape) if shape else t.shape[-1]
        rows = t.numel // columns
        eps = next((a for a in call.arguments if isinstance(a, float)), _EPS.get(t.dtype, 1e-5))
        options: dict[str, Any] = {"chip": target.chip, "cores": target.cores, "eps": eps}
        held = {n: call.argument(at) for n, at in places.items()}
        made_of = dict(zip(ROW_OPS[name].outputs.replace("*", "").split(), call.results,
                           strict=False))  # fmt: skip
        sums = [s.name for s in ROW_OPS[name].steps(columns, eps) if s.opcode == "column_sum"]
        sums = [n for n in sums if made_of.get(n) is not None]
        absent = {n for n, t in held.items() if t is None}
        asked = {n for n, r in made_of.items() if r is not None}
        absent |= {n.lstrip("*") for n in ROW_OPS[name].outputs.split()} - asked
        program = row_op(name, rows, columns, t.dtype, absent=absent, **options)
        held = {n: t for n, t in held.items() if n not in absent}
        made_of = {n: r for n, r in made_of.items() if n not in absent}
        each = {n: made(n, (program.cores, columns), "float32") for n in sums}
        apart = each if program.cores > 1 else {}
        stored = {f"out {n}": apart.get(n, r) for n, r in made_of.items()}
        return (labelled(program, {**held, **stored}), *_of_cores(apart, made_of, target))

    return lower


def _of_cores(
    apart: Mapping[str, TensorArg], results: Mapping[str, Any], target: Target
) -> Lowered:
    """What adds up the sums over rows that each core has of its own rows: [cores, columns] each."""
    if not apart:
        return ()
    cores, columns = next(iter(apart.values())).shape
    size = len(apart) * columns
    parts = [TensorArg("float32", (size,), (1,),
                       views=tuple(t.views[0].at(0, core) for t in apart.values()))
             for core in range(cores)]  # fmt: skip
    steps = steps_of(lambda first, *others: sum(others, first), cores)
    wanted = [results.get(n) or made(f"{n} unused", (columns,), "float32") for n in apart]
    views = tuple(v for t in wanted for v in t.views)
    whole = TensorArg("float32", (size,), (1,), views=views)
    return (flattened("sums of the cores", steps, parts, whole, target),)
