"""Rows of reductions, scans, sorts and norms: which dimensions a call works along."""

from math import ceil, prod

from .call import Call, Target, TensorArg
from .columns import cumulate_rows, reduce_columns, topk_rows
from .elementwise import flattened
from .normalizing import row_op
from .op import Lowered, Lowering, flat, rows_along
from .pointwise import tensor_tensor
from .reduction import reduce_rows

__all__ = [
    "along_rows",
    "collapsed",
    "over_normalized",
    "reduced_dims",
    "reduction",
    "scan",
    "sort",
]

_FEW = 8  # rows that are added like so many tensors


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
    "amax amin argmax argmin logsumexp cumsum cumprod cummax _softmax _log_softmax aminmax "
    "all any median kthvalue mode var_mean std_mean".split()
)


def collapsed(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, int, int]:
    """(outer, reduced, inner) sizes; dimensions of 1 do not count, others between fold outward."""
    kept = [(n, k in dims) for k, n in enumerate(shape) if n != 1]
    reduced = prod(n for n, r in kept if r)
    inner = 1
    while kept and not kept[-1][1]:
        inner *= kept.pop()[0]
    outer = prod(n for n, r in kept if not r)
    return outer, reduced, inner


def reduction(op: str, row_name: str = "") -> Lowering:
    """By the Vector engine along rows, by ones or partition by partition along columns."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        if not t.numel:
            return ()
        outer, rows, inner = collapsed(t.shape, reduced_dims(call, t))
        options = {"chip": target.chip, "cores": target.cores}
        out = call.out.dtype
        if inner > 1 and outer == 1 and rows <= _FEW and op in ("add", "max", "multiply"):
            steps = [tensor_tensor(op, 0, 1), *(tensor_tensor(op, -1, k) for k in range(2, rows))]
            few = [flat(t, inner)] * rows
            return (flattened(f"reduce_{op}", steps, few, flat(call.out, inner), target),)
        if inner > 1:
            return (
                reduce_columns(outer, rows, inner, op=op, dtype=t.dtype, out_dtype=out, **options),  # type: ignore[arg-type]
            )
        if outer == 1 and rows > 1024:  # everything: rows first, then the partitions
            first = reduce_rows(128, ceil(rows / 128), op=op, dtype=t.dtype, **options)  # type: ignore[arg-type]
            return (first, reduce_rows(1, 128, op=op, out_dtype=out, chip=target.chip))
        if row_name:
            return (row_op(row_name, outer, rows, t.dtype, **options),)  # type: ignore[arg-type]
        return (reduce_rows(outer, rows, op=op, dtype=t.dtype, out_dtype=out, **options),)  # type: ignore[arg-type]

    return lower


def along_rows(name: str, which: int = 0, dim_at: int | None = None) -> Lowering:
    """An entry of ROW_OPS over dimension `dim_at` of the call, or the last one."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[which]
        dim = call.argument(dim_at, -1) if dim_at is not None else -1
        rows, columns = rows_along(t, dim if isinstance(dim, int) else -1)
        if not t.numel:
            return ()
        return (row_op(name, rows, columns, t.dtype, chip=target.chip, cores=target.cores),)

    return lower


def over_normalized(name: str, which: int) -> Lowering:
    """Layer and RMS norm: a row is the normalized shape."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[which]
        shape = next(
            (a for a in call.arguments if isinstance(a, tuple) and a and isinstance(a[0], int)),
            None,
        )
        columns = prod(shape) if shape else t.shape[-1]
        if not t.numel:
            return ()
        rows = t.numel // columns
        return (row_op(name, rows, columns, t.dtype, chip=target.chip, cores=target.cores),)

    return lower


def scan(op: str) -> Lowering:
    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        if not t.numel:
            return ()
        rows, columns = rows_along(t, call.argument(1, -1))
        cores = target.cores
        return (cumulate_rows(rows, columns, op=op, chip=target.chip, dtype=t.dtype, cores=cores),)

    return lower


def sort(call: Call, target: Target) -> Lowered:
    t = call.tensors[0]
    integers = [a for a in call.arguments[1:] if isinstance(a, int) and not isinstance(a, bool)]
    k = integers[0] if call.name == "topk" and integers else 0
    rows, columns = rows_along(t)
    if not t.numel:
        return ()
    count = k or columns
    return (topk_rows(rows, columns, count, chip=target.chip, dtype=t.dtype, cores=target.cores),)
