"""Rows of copies, gathers and scatters: what a call moves and in which runs."""

from math import prod

from ..isa import Program, itemsize
from .call import Call, Target, TensorArg
from .columns import scatter_rows
from .elementwise import elementwise
from .movement import gather_rows, transpose
from .moving import copy_runs, longest_run, turned
from .op import HostTransfer, Lowered, Lowering, flat, rows_along
from .reduction import reduce_rows

__all__ = [
    "copied",
    "copy",
    "gather",
    "nll",
    "nll_backward",
    "rearranged",
    "scatter",
]


def copy(call: Call, target: Target) -> Lowered:
    """Of one tensor to another, on the device or over the host's link."""
    tensors = call.tensors
    if call.name in ("copy", "_copy_from", "_copy_from_and_resize"):
        to, source = tensors[:2] if call.name == "copy" else tensors[1::-1]
    else:
        source, to = tensors[0], call.out
    if to.on_host != source.on_host and call.name in ("copy", "_copy_from", "_to_copy"):
        return HostTransfer(source.numel * itemsize(source.dtype), to.on_host)
    return copied(source, to, target)


def copied(source: TensorArg, to: TensorArg, target: Target) -> tuple[Program, ...]:
    """A copy with the layouts and dtypes given."""
    if not to.numel:
        return ()
    options = {"chip": target.chip, "cores": target.cores}
    if source.numel != to.numel:  # broadcast
        return (elementwise("copy", [], [source], to, target),)
    for t in (source, to):
        if (swap := turned(t)) and itemsize(t.dtype) <= 4:
            batch, rows, columns = swap
            if min(rows, columns) >= 16 and t.dtype in target.chip.tensor_engine.macs_per_pe_cycle:
                return (transpose(columns * batch, rows, dtype=t.dtype, **options),)  # type: ignore[arg-type]
    runs = longest_run(source), longest_run(to)
    if min(runs) < to.numel:
        side = "in" if runs[0] <= runs[1] else "out"
        program = copy_runs(to.numel, min(runs), source.dtype, to.dtype, strided=side, **options)  # type: ignore[arg-type]
        return (program,)
    return (elementwise("copy", [], [flat(source, to.numel)], flat(to, to.numel), target),)


def rearranged(call: Call, target: Target) -> Lowered:
    """Flips, rolls, repeats, pads, slices' gradients: runs of the last dimension."""
    out, source = call.out, call.tensors[0]
    run = max(1, source.shape[-1] if source.shape else 1)
    if not out.numel:
        return ()
    options = {"chip": target.chip, "cores": target.cores, "strided": "out"}
    return (copy_runs(out.numel, run, source.dtype, out.dtype, **options),)  # type: ignore[arg-type]


def gather(call: Call, target: Target) -> Lowered:
    """Rows by index when whole rows are taken, elements otherwise."""
    table, out = call.tensors[0], call.out
    if not out.numel or not table.numel:
        return ()
    columns = 1
    if call.name in ("embedding", "index_select", "index", "_embedding_bag", "embedding_renorm"):
        columns = table.numel // max(1, table.shape[0])
        if call.name == "index":
            taken = [t for t in call.tensors[1:] if "int" in t.dtype or t.dtype == "bool"]
            columns = prod(table.shape[len(taken) :])
        if call.name == "index_select" and call.argument(1, 0) % len(table.shape):
            columns = prod(table.shape[call.argument(1, 0) % len(table.shape) + 1 :])
    columns = max(1, columns)
    count = max(1, out.numel // columns)
    program = gather_rows(
        max(1, table.numel // columns),
        columns,
        count,
        chip=target.chip,
        dtype=table.dtype,
        cores=target.cores,
    )
    return (program,)


def scatter(source_at: int, *, copies: bool) -> Lowering:
    """Rows or elements added or put by index into a copy of the table, in place, or into zeros."""

    def lower(call: Call, target: Target) -> Lowered:
        out = call.out
        tensors = call.tensors
        source = tensors[min(source_at, len(tensors) - 1)]
        if not out.numel or not source.numel:
            return ()
        whole = call.name in ("embedding_dense_backward", "index_add", "index_copy")
        columns = out.numel // max(1, out.shape[0] if out.shape else 1) if whole else 1
        if call.name in ("index_put", "_index_put_impl", "_unsafe_index_put") and tensors[1:]:
            indices = len(call.argument(1, ()))
            columns = prod(out.shape[indices:])
        columns = max(1, min(columns, source.numel))
        count = max(1, source.numel // columns)
        functional = copies and not call.op.split("::")[-1].split(".")[0].endswith("_")
        program = scatter_rows(
            max(1, out.numel // columns),
            columns,
            count,
            chip=target.chip,
            dtype=out.dtype,
            cores=target.cores,
            zeroed=not copies,
        )
        return (*copied(tensors[0], out, target), program) if functional else (program,)

    return lower


def nll(call: Call, target: Target) -> Lowered:
    """One element a row, then their sum."""
    x = call.tensors[0]
    rows, columns = rows_along(x)
    if not x.numel:
        return ()
    taken = gather_rows(rows * columns, 1, rows, chip=target.chip, dtype=x.dtype)
    return (taken, reduce_rows(1, rows, op="add", chip=target.chip, out_dtype=call.out.dtype))


def nll_backward(call: Call, target: Target) -> Lowered:
    out = call.out
    rows, _ = rows_along(out)
    if not out.numel:
        return ()
    cores = target.cores
    program = scatter_rows(out.numel, 1, rows, chip=target.chip, dtype=out.dtype, cores=cores)
    return (program,)
