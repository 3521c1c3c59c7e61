"""What a row of OPS is, and what the families that make rows share: shapes of calls.

Status, of the program's shape (each instruction's cost has its own source in `chip` and `engines`):
  modelled   the program computes the operator; tests run it on the machine
  inferred   a program of the right shape: values or layouts are simplified as the note says
  free       metadata only, nothing is launched
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ..calls import Call, Target, TensorArg
from ..isa import Program, Role

__all__ = [
    "AnyLowering",
    "HostTransfer",
    "Lowered",
    "Lowering",
    "Op",
    "around",
    "broadcast_shape",
    "dense",
    "flat",
    "on_cores_with_work",
]


@dataclass(frozen=True, slots=True)
class HostTransfer:
    """Bytes over the host's link; the host waits for what leaves the device."""

    nbytes: float
    blocks: bool


Lowered = tuple[Program, ...]
Lowering = Callable[[Call, Target], Lowered]
AnyLowering = Callable[[Call, Target], Lowered | HostTransfer]  # what a row may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    name: str
    engine: str
    lower: AnyLowering
    status: str = "inferred"
    note: str = ""


def dense(shape: tuple[int, ...], torch_dtype: str) -> TensorArg:
    """A contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return TensorArg(torch_dtype, shape, tuple(reversed(strides)))


def flat(t: TensorArg, elements: int) -> TensorArg:
    """As one run of its elements, in their order."""
    return TensorArg(t.torch_dtype, (elements,), (1,), views=t.views)


def on_cores_with_work(lower: AnyLowering) -> AnyLowering:
    """The lowering, on one core where each of several would do all of the work; nothing is launched
    for a call that has none.
    """

    def lowered(call: Call, target: Target) -> Lowered | HostTransfer:
        if _without_elements(call):
            return ()
        programs = lower(call, target)
        if target.cores == 1 or not isinstance(programs, tuple):
            return programs
        if all(p.cores == 1 for p in programs) or not _may_be_whole(call, programs):
            return programs
        alone = lower(call, Target(target.chip, 1))
        if not isinstance(alone, tuple):
            return programs
        same = all(_work(a) == _work(b) for a, b in zip(programs, alone, strict=False))
        return alone if same and len(alone) <= len(programs) else programs

    return lowered


# Operators that fill what their first operand has no elements for, or ask the host.
_FILLS = frozenset(
    "new_zeros new_ones new_full constant_pad_nd slice_backward select_backward diagonal_backward "
    "unfold_backward copy _copy_from _copy_from_and_resize _to_copy".split()
)


def _without_elements(call: Call) -> bool:
    """Whether all results are empty, or what they are made of is."""
    if call.outputs and not any(t.numel for t in call.outputs) and not call.name.endswith("copy"):
        return True
    first = call.arguments[0] if call.arguments else None
    return isinstance(first, TensorArg) and not first.numel and call.name not in _FILLS


def _may_be_whole(call: Call, programs: Lowered) -> bool:
    """Whether one core's programs store as much as the call gives."""
    stored = sum(b.elements for p in programs for b in p.buffers if b.role is Role.OUTPUT)
    return stored >= sum(t.numel for t in call.outputs)


def _work(program: Program) -> list[object]:
    """What tells two programs of a call apart: buffers, loops, and what instructions touch."""
    buffers = [(b.name, b.shape, b.dtype) for b in program.buffers]
    touched = [
        (i.opcode, [(a.buffer.name, a.pattern) for a in (*i.writes, *i.reads)])
        for i in program.instructions()
    ]
    return [buffers, sorted(program.loops().values()), touched]


def broadcast_shape(*tensors: TensorArg) -> tuple[int, ...]:
    """The shape of tensors broadcast together."""
    rank = max(len(t.shape) for t in tensors)
    shapes = [(1,) * (rank - len(t.shape)) + t.shape for t in tensors]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def around(t: TensorArg, dim: int) -> tuple[int, int, int]:
    """Elements before, along and after a dimension."""
    shape = t.shape or (1,)
    dim %= len(shape)
    return prod(shape[:dim]), shape[dim], prod(shape[dim + 1 :])
