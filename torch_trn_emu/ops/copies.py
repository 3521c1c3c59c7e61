"""Rows of copies: what a call moves and in which runs."""

from collections.abc import Iterator
from dataclasses import replace

from ..calls import Call, Target, TensorArg
from ..calls.labels import constant, expanded, labelled, made, permuted
from ..isa import Program, View, itemsize
from ..kernels.copy_runs import copy_runs, longest_run, run_of_copy, transposed
from ..kernels.strided_copy import Box
from ..kernels.transpose import transpose
from ..kernels.transpose_narrow import transpose_narrow
from ..timing import price
from .by_rows import SMALL, by_rows
from .elementwise import conversion, elementwise
from .faster import faster
from .op import HostTransfer, Lowered, flat

__all__ = [
    "copied",
    "copy",
]


def copy(call: Call, target: Target) -> Lowered | HostTransfer:
    """Of one tensor to another, on the device or over the host's link."""
    tensors = call.tensors
    if call.name in ("copy", "_copy_from", "_copy_from_and_resize"):
        to, source = tensors[:2] if call.name == "copy" else tensors[1::-1]
    else:
        source, to = tensors[0], call.out
    if to.on_host != source.on_host and call.name in ("copy", "_copy_from", "_to_copy"):
        return HostTransfer(source.numel * itemsize(source.dtype), to.on_host)
    if call.outputs and call.out.shape == to.shape:
        to = replace(to, views=call.out.views)
    return copied(source, to, target)


def copied(source: TensorArg, to: TensorArg, target: Target) -> Lowered:
    """A copy with the layouts and dtypes given."""
    if not to.numel:
        return ()
    if conversion(source.dtype, to.dtype) and source.numel == to.numel:
        return _converted(source, to, target)
    if source.numel != to.numel:  # broadcast
        return (elementwise("copy", [], [source], to, target),)
    source, to = _merged(source, to)
    for t in (source, to):
        if turned := [*_by_blocks(t, source, to, target), *_by_runs(t, source, to, target)]:
            turned += [_moved(source, to, target)] * (to.numel <= SMALL)
            return (min(turned, key=lambda program: price(program, target.chip).total_s),)
    if min(map(longest_run, (source, to))) < to.numel:
        ways = [(_moved(source, to, target),), *_by_turns(source, to, target)]
        ways += _once_in_order(source, to, target)
        if source.dtype != to.dtype and to.numel > SMALL:
            ways.append(_converted(source, to, target))
        return faster([*ways, *_by_rows(source, to, target)], target)
    return (elementwise("copy", [], [flat(source, to.numel)], flat(to, to.numel), target),)


def _merged(source: TensorArg, to: TensorArg) -> tuple[TensorArg, TensorArg]:
    """Dimensions that lie together in both tensors as one, without those of one element."""
    both = source, to
    if source.shape != to.shape or any(v.shape != t.shape for t in both for v in t.views):
        return both
    layouts = [t.strides for t in both] + [v.strides for t in both for v in t.views]
    ends: list[int] = []  # the last dimension of each that remains
    sizes: list[int] = []
    for d, size in enumerate(to.shape):
        if size == 1:
            continue
        if ends and all(strides[ends[-1]] == size * strides[d] for strides in layouts):
            ends[-1], sizes[-1] = d, sizes[-1] * size
        else:
            ends.append(d)
            sizes.append(size)

    def seen(strides: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(strides[d] for d in ends)

    shape = tuple(sizes)
    first, second = (
        replace(t, shape=shape, strides=seen(t.strides),
                views=tuple(replace(v, shape=shape, strides=seen(v.strides)) for v in t.views))
        for t in both
    )  # fmt: skip
    return first, second


def _by_turns(source: TensorArg, to: TensorArg, target: Target) -> Iterator[Lowered]:
    """What is moved element by element: the result's last dimension is made the last one of all,
    then moved in runs.
    """
    last = len(to.shape) - 1
    if last < 2 or to.numel <= SMALL or longest_run(to) < to.shape[last]:
        return
    in_memory = sorted(range(last), key=lambda d: -source.strides[d])
    if longest_run(permuted(source, [in_memory[-1]])) == 1 or source.strides[last] == 1:
        return
    order = [*in_memory, last]
    turned = made(f"{to.numel} turned", tuple(to.shape[d] for d in order), to.torch_dtype)
    back = permuted(turned, [order.index(d) for d in range(last + 1)])
    first = copied(permuted(source, order), turned, target)
    yield (*first, *copied(back, to, target))


def _once_in_order(source: TensorArg, to: TensorArg, target: Target) -> Iterator[Lowered]:
    """What repeats elements that lie apart: they are put in order once."""
    repeats = [n > 1 and step == 0 for n, step in zip(source.shape, source.strides, strict=True)]
    if source.shape != to.shape or not any(repeats) or to.numel <= SMALL:
        return
    shape = tuple(1 if again else n for again, n in zip(repeats, source.shape, strict=True))
    views = tuple(replace(v, shape=shape) for v in source.views if v.shape == source.shape)
    once = replace(source, shape=shape, views=views)
    if not once.contiguous:
        ordered = made(f"{once.numel} in order", shape, to.torch_dtype)
        again = expanded(ordered, to.shape)
        yield (*copied(once, ordered, target), *copied(again, to, target))


def _by_rows(source: TensorArg, to: TensorArg, target: Target) -> Iterator[Lowered]:
    """Parts of rows of the source, or of the result."""
    if source.shape != to.shape:
        return
    box = Box(source="in", counts=to.shape, to=0, to_strides=to.strides, strides=source.strides)
    keeps = longest_run(to) < to.numel
    if program := by_rows("copy", target, {"in": source}, to, [box], keeps=keeps):
        yield (program,)


def _moved(source: TensorArg, to: TensorArg, target: Target) -> Program:
    """By DMA, a descriptor for each run."""
    runs = longest_run(source), longest_run(to)
    side, run = "in" if runs[0] <= runs[1] else "out", min(runs)
    program = copy_runs(to.numel, run, source.dtype, to.dtype, strided=side, cores=target.cores)
    whole = {"in": source, "out": to}
    whole[side] = _in_runs(whole[side], run_of_copy(run, source.dtype))
    between = {"out": constant(0.0, (1,), to.torch_dtype)} if side == "out" else {}
    return labelled(program, whole, before=between)


def _by_blocks(t: TensorArg, source: TensorArg, to: TensorArg, target: Target) -> Iterator[Program]:
    """Where the last dimensions of `t` are exchanged in memory: blocks on the Tensor engine."""
    batch, rows, columns = transposed(t) or (0, 0, 0)
    if min(rows, columns) >= 16 and t.dtype in target.chip.tensor_engine.macs_per_pe_cycle:
        program = transpose(
            columns * batch, rows, dtype=t.dtype, chip=target.chip, cores=target.cores
        )
        held = {"in": permuted(source, _turning(source, (0, 2, 1))),
                "out": permuted(to, _turning(to, (1, 0, 2)))}  # fmt: skip
        yield labelled(program, held, outer={"out": rows})


def _by_runs(t: TensorArg, source: TensorArg, to: TensorArg, target: Target) -> Iterator[Program]:
    """The same within partitions, where all elements lie together."""
    batch, rows, columns = transposed(t) or (0, 0, 0)
    if not rows or itemsize(t.dtype) > 4:
        return
    if t is source:
        source, rows, columns = permuted(source, _turning(source, (0, 2, 1))), columns, rows
    else:
        to = permuted(to, _turning(to, (0, 2, 1)))
    if min(map(longest_run, (source, to))) < to.numel:
        return
    program = transpose_narrow(batch, rows, columns, dtype=t.dtype, cores=target.cores)
    split = {"out": batch * columns} if rows >= columns else {"in": batch * rows}
    held = {"in": source, "out": to}
    yield labelled(program, held, outer=split if batch < target.cores else {})


def _converted(source: TensorArg, to: TensorArg, target: Target) -> Lowered:
    """The steps from one dtype to another, with a copy before or after where one lies in parts."""
    n = to.numel
    source, to = _in_order_of(to, source, to)
    dense, stores = longest_run(source) == n, longest_run(to) == n
    first = source if dense else made(f"{n} gathered", source.shape, source.torch_dtype)
    last = to if stores else made(f"{n} converted", to.shape, to.torch_dtype)
    return (
        *(() if dense else copied(source, first, target)),
        elementwise("copy", [], [flat(first, n)], flat(last, n), target),
        *(() if stores else copied(last, to, target)),
    )


def _in_order_of(t: TensorArg, source: TensorArg, to: TensorArg) -> tuple[TensorArg, TensorArg]:
    """Both with their dimensions in the order in which `t` has them in memory."""
    if source.shape != to.shape:
        return source, to
    order = sorted(range(len(t.shape)), key=lambda d: -t.strides[d])
    return permuted(source, order), permuted(to, order)


def _turning(t: TensorArg, order: tuple[int, int, int]) -> list[int]:
    """Dimensions in the order of the parts of (all others, rows, columns), the last two of size."""
    wide = [d for d, n in enumerate(t.shape) if n != 1]
    row, column = wide[-2:]
    parts = ([d for d in range(len(t.shape)) if d not in (row, column)], [row], [column])
    return [d for k in order for d in parts[k]]


def _in_runs(t: TensorArg, run: int) -> TensorArg:
    """As `copy_runs` has the side whose runs lie apart: each run twice, of which one counts."""
    views = tuple(_doubled(v, run) for v in t.views)
    return replace(t, views=tuple(v for v in views if v is not None))


def _doubled(v: View, run: int) -> View | None:
    shape, strides, whole = list(v.shape), list(v.strides), 1
    while shape and (shape[-1] == 1 or strides[-1] == whole):
        whole *= shape.pop()
        strides.pop()
    if whole % run:
        return None
    return replace(v, shape=(*shape, whole // run, 2, run), strides=(*strides, run, 0, 1))
