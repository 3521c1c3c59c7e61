"""Losses of elements: their steps, and the sum or mean over all in the same pass."""

from collections.abc import Sequence

from ..calls import Call, Target, TensorArg
from ..calls.labels import expanded, labelled
from ..chip import Chip
from ..isa import Program, Role
from ..kernels.multi_tensor import Tiles, pass_over
from ..kernels.pointwise import Step
from .elementwise import lower_elementwise
from .formulas import steps_of
from .loss_steps import LOSSES, MEAN, NONE, reduction_of
from .op import Lowered

__all__ = ["loss"]


def summed(
    name: str, elements: int, dtypes: Sequence[str], out_dtype: str, steps: Sequence[Step],
    factor: float, *, chip: Chip,
) -> Program:  # fmt: skip
    """Out = factor times the sum of the last step over operands in0, in1, ..., on one core."""

    def first(tiles: Tiles) -> None:
        for column, value in (("total", 0.0), ("ones", 1.0)):
            tiles.column(column)
            tiles.b.emit("memset", tiles(column), value=value)
        tiles.column("of tile")

    def each(tiles: Tiles) -> None:
        names = [f"in{k}" for k in range(len(dtypes))]
        done: list[str] = []
        for k, step in enumerate(steps):
            reads = [tiles(names[r] if r >= 0 else done[r]) for r in step.reads]
            step.emit(tiles.b, tiles(f"step {k}"), reads)
            done.append(f"step {k}")
        tiles.b.emit("tensor_reduce", tiles("of tile"), tiles(done[-1]), op="add")
        tiles.tensor("total", "total", "add", "of tile")

    def last(tiles: Tiles) -> None:
        b = tiles.b
        whole, done = b.psum("whole", 1), b.sbuf("done", 1, out_dtype)
        one, result = (x.box((1, 1), (1, 1)) for x in (whole, done))
        b.emit("nc_matmul", one, tiles("ones"), tiles("total"))
        b.emit("tensor_scalar", result, one, op0="multiply", imm0=factor)
        out = b.hbm("out", (1,), out_dtype, Role.OUTPUT)
        b.store(out.box((1, 1), (1, 1)), result)

    return pass_over(
        name, elements, {f"in{k}": d for k, d in enumerate(dtypes)}, stored=(),
        work=[f"step {k}" for k in range(len(steps))], shared={},
        first=first, each=each, last=last, chip=chip,
    )  # fmt: skip


def loss(call: Call, target: Target) -> Lowered:
    """Operands that repeat are read in full where the loss is summed."""
    x = call.tensors[0]
    kind = reduction_of(call)
    if kind == NONE:
        return lower_elementwise(call, target)
    operands: list[TensorArg] = list(call.tensors)
    steps = steps_of(lambda *values: LOSSES[call.name](call, values), len(operands))
    factor = 1 / x.numel if kind == MEAN else 1.0
    dtypes = [t.dtype for t in operands]
    program = summed(call.name, x.numel, dtypes, call.out.dtype, steps, factor, chip=target.chip)
    held = {f"in{k}": t if t.numel == x.numel else expanded(t, x.shape)
            for k, t in enumerate(operands)}  # fmt: skip
    return (labelled(program, {**held, "out": call.out}),)
