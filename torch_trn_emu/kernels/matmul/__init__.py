"""Matrix multiplication as engine programs: blocks, buffering, transposes and MX quantization.

`matmul/blocking.py` says how the product is cut and holds the schedules; `matmul/operand.py`
brings the operands.
"""

from ...chip import Chip
from ...isa import Buffer, Builder, Memory, Program, Role, itemsize
from .blocking import (
    COMPILER,
    HAND,
    Cut,
    Plan,
    Schedule,
    dma_turns,
    packing_of,
    plan_few,
    plan_of,
    repeats_preparation,
    share_of_core,
)
from .body import Body
from .chunked import Chunked
from .epilogue import Epilogue, Finisher
from .evacuation import PLAIN, Leaving
from .operand import Operand
from .picked import Picked
from .turned import Turned, TurnedInParts

__all__ = ["COMPILER", "HAND", "Schedule", "matmul"]


def matmul(
    m: int,
    k: int,
    n: int,
    *,
    chip: Chip,
    compute: str = "bfloat16",
    lhs_dtype: str = "bfloat16",
    rhs_dtype: str = "bfloat16",
    out_dtype: str = "bfloat16",
    lhs_layout: str = "mk",
    rhs_layout: str = "kn",
    batch: int = 1,
    cores: int = 1,
    schedule: Schedule = COMPILER,
    leaving: Leaving = PLAIN,
    epilogue: Epilogue | None = None,
    picked: int = 0,
) -> Program:
    """out[b, m, n] = lhs[b] @ rhs[b], accumulated in float32, in the best blocking of `schedule`.

    compute  the operands' format on the array: a float format, or "mxfp8", "mxfp8_e5m2"
    layouts  "mk" or "km", "kn" or "nk": the order in memory, last dimension contiguous
    cores    the first free dimension long enough is split over them; the program is one core's
    leaving   what is added, scaled and applied as results leave PSUM
    epilogue  what is computed of the results and stored instead of them
    picked    rhs is a table of so many matrices, of which an index for each of the batch picks one
    """
    flops = 2.0 * batch * m * k * n
    if cores > 1:
        batch, m, n = share_of_core(batch, m, n, cores)
    b = Builder(f"matmul {m}x{k}x{n} {compute}", cores=cores, model_flops=flops)
    packing, majors = packing_of(compute, chip), (lhs_layout == "km", rhs_layout == "kn")
    sizes = (batch, m, k, n)
    lhs, rhs = _given(b, sizes, (lhs_dtype, rhs_dtype), majors, picked)
    out = _results(b, (batch, m, n), out_dtype, epilogue)
    held = itemsize(out.dtype) * schedule.result_slots + leaving.bytes_per_column
    held += epilogue.column_bytes if epilogue else 0
    cut = Cut(
        m=m, k=k, n=n, packing=packing, majors=majors, dtypes=(lhs_dtype, rhs_dtype),
        bytes_per_column=held, chip=chip, schedule=schedule,
    )  # fmt: skip
    whole = picked > 0 and k <= schedule.long_contraction
    plan = plan_few(cut) or plan_of(cut, whole=whole)
    left, right = _operands(b, (lhs, rhs), cut, plan)
    if picked:
        if plan.chunk or packing.mx or not majors[1] or (batch == 1 and n > plan.block_n):
            raise KeyError("matrices picked in chunks, in MX formats or transposed, or very wide")
        right.picked = Picked(b, rhs, batch)
    kind = _kind(plan)
    body = kind(b, left, right, out, plan, schedule, leaving)
    if epilogue is not None:
        body.finisher = Finisher(b, epilogue, (batch, m, n), plan.width)
    streams = right if plan.m_outside else left
    if isinstance(body, Chunked):
        body.prepare(sizes)
    elif batch == 1 and repeats_preparation(plan, m, n) and streams.prepared_by_engines:
        streams.restage()
    body.product(sizes)
    return b.build()


def _given(
    b: Builder,
    sizes: tuple[int, int, int, int],
    dtypes: tuple[str, str],
    majors: tuple[bool, bool],
    picked: int,
) -> tuple[Buffer, Buffer]:
    """The factors in HBM; `majors` says which have the contraction before the free dimension."""
    batch, m, k, n = sizes
    shapes = [(batch, k, free) if major else (batch, free, k)
              for free, major in zip((m, n), majors, strict=True)]  # fmt: skip
    lhs = b.hbm("lhs", shapes[0], dtypes[0], Role.INPUT)
    return lhs, b.hbm("rhs", (picked or batch, *shapes[1][1:]), dtypes[1], Role.WEIGHT)


def _results(
    b: Builder, shape: tuple[int, int, int], dtype: str, epilogue: Epilogue | None
) -> Buffer:
    """Where results go; with an epilogue, which stores its own, a name for them only."""
    if epilogue is None:
        return b.hbm("out", shape, dtype, Role.OUTPUT)
    return Buffer(name="out", memory=Memory.HBM, dtype="float32", shape=shape)


def _operands(
    b: Builder, tensors: tuple[Buffer, Buffer], cut: Cut, plan: Plan
) -> tuple[Operand, Operand]:
    """Both factors in blocks of the plan; the one that streams by may turn in the DMA engines."""
    blocks, slots = (plan.block_m, plan.block_n), (plan.lhs_slots, plan.rhs_slots)
    left, right = (
        Operand(
            b,
            tensors[i],
            k=cut.k,
            block=blocks[i],
            packing=plan.packing(cut),
            contraction_major=cut.majors[i],
            slots=slots[i],
            turn_by_dma=(plan.m_outside == bool(i) or (plan.chunk > 0 and not plan.turned))
            and dma_turns(tensors[i].dtype, cut.packing, cut.chip),
            k_at_once=plan.chunk if plan.chunk and (i or not plan.turned) else None,
        )
        for i in (0, 1)
    )
    return left, right


def _kind(plan: Plan) -> type[Body]:
    """The loops of a plan."""
    if plan.turned:
        return TurnedInParts if plan.chunk else Turned
    return Chunked if plan.chunk else Body
