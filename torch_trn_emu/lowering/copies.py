"""Rows of copies: what a call moves and in which runs."""

from ..isa import Program, itemsize
from .call import Call, Target, TensorArg
from .elementwise import conversion, elementwise
from .movement import transpose
from .moving import copy_runs, longest_run, turned
from .op import HostTransfer, Lowered, flat

__all__ = [
    "copied",
    "copy",
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
    if conversion(source.dtype, to.dtype) and source.numel == to.numel:
        plain = flat(source, to.numel), flat(to, to.numel)
        moved = () if longest_run(source) == to.numel else copied(source, plain[0], target)
        stored = () if longest_run(to) == to.numel else copied(plain[1], to, target)
        return (*moved, elementwise("copy", [], plain[:1], plain[1], target), *stored)
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
