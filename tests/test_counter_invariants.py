"""What holds for the counters of any program, of operators and of graphs: drawn ones."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import torch_trn_emu
from benchmarks.kernels.convolution import conv2d
from torch_trn_emu.chip import CHIPS, Chip, get_chip
from torch_trn_emu.counters import COUNTERS, Totals, Unit, counters
from torch_trn_emu.isa import Engine, Program
from torch_trn_emu.kernels.attention.forward import attention
from torch_trn_emu.kernels.attention.spec import AttentionSpec
from torch_trn_emu.kernels.matmul import matmul
from torch_trn_emu.kernels.pointwise import activation, pointwise, tensor_tensor
from torch_trn_emu.ops.normalization import row_op
from torch_trn_emu.timing import price

# torch 2.13 uses what it deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*does not know how to trace:UserWarning"),
]

ENGINES = [e.value for e in Engine if e is not Engine.DMA]
SIZES = st.integers(1, 700)
ROW_OPS = ["softmax", "layer_norm_backward", "rms_norm"]
FLOATS = st.sampled_from(["float32", "bfloat16", "float16"])


def _holds(totals: Totals) -> None:
    """The invariants of one set of counters."""
    limit = totals["total_time"] * (1 + 1e-6)
    for name, value in totals.items():
        assert value >= 0, name
        if COUNTERS[name].unit is Unit.PERCENT:
            assert totals[name] <= 100 * (1 + 1e-6), name
    for engine in ENGINES:
        active = totals[f"{engine}_engine_active_time"]
        assert active <= totals[f"{engine}_engine_instruction_time"] <= limit, engine
        assert active <= totals["total_active_time"] * (1 + 1e-6), engine
    assert totals["dma_active_time"] <= totals["total_active_time"] <= totals["total_exec_time"]
    assert totals["tensor_engine_throttled_time"] <= totals["tensor_engine_active_time"] / 2 + 1e-9
    assert totals["mfu_estimated_percent"] <= totals["hfu_estimated_percent"] * (1 + 1e-6)
    assert totals["transpose_flops"] <= totals["hardware_flops"]
    _bytes_balance(totals)


def _bytes_balance(totals: Totals) -> None:
    """What is moved is moved by a kind of DMA; queues move a part of the traffic."""
    kinds = ("static_dma", "software_dynamic_dma")
    for what in ("transfer_count", "transfer_total_bytes"):
        assert totals[f"dma_{what}"] == sum(totals[f"{kind}_{what}"] for kind in kinds)
    reads = ("input_queue_bytes", "weight_queue_bytes", "spill_reload_bytes")
    writes = ("output_queue_bytes", "spill_save_bytes")
    assert sum(totals[n] for n in reads) <= totals["hbm_read_bytes"]
    assert sum(totals[n] for n in writes) <= totals["hbm_write_bytes"]
    assert totals["psum_read_sbuf_write_count"] <= totals["event_count"]


@st.composite
def programs(draw: st.DrawFn) -> tuple[Chip, Program]:
    chip = get_chip(draw(st.sampled_from(list(CHIPS))))
    cores = draw(st.sampled_from(chip.lnc_choices))
    a, b, c = (draw(SIZES) for _ in range(3))
    dtype = draw(FLOATS)
    formats = [
        f for f in ("float32", "bfloat16", "mxfp8") if f in chip.tensor_engine.macs_per_pe_cycle
    ]
    make: dict[str, Callable[[], Program]] = {
        "matmul": lambda: matmul(a, b, c, chip=chip, compute=draw(st.sampled_from(formats)),
                                 cores=cores),
        "rows": lambda: row_op(draw(st.sampled_from(ROW_OPS)), a, b, dtype, chip=chip,
                               cores=min(cores, a)),
        "pointwise": lambda: pointwise("gelu", a * b, [dtype] * 2, dtype,
                                       [tensor_tensor("add"), activation("gelu", -1)], chip=chip,
                                       cores=cores),
        "attention": lambda: attention(AttentionSpec(batch=cores, heads=2, queries=a, keys=b,
                                                      dim=64,
                                                      causal=draw(st.booleans()) and a == b),
                                       chip=chip, cores=cores),
        "convolution": lambda: conv2d(cores, 64, 16, 16, 64, 3, chip=chip, dtype="bfloat16"),
    }  # fmt: skip
    return chip, make[draw(st.sampled_from(list(make)))]()


@settings(max_examples=60, deadline=None)
@given(drawn=programs())
def test_of_a_program(drawn: tuple[Chip, Program]) -> None:
    chip, program = drawn
    run = price(program, chip)
    totals = counters(run)
    _holds(totals)
    assert totals["total_time"] == run.total_s
    moved = program.cores * sum(
        r.count * sum(a.nbytes for a in r.instruction.writes)
        for r in run.retired
        if r.instruction.engine is Engine.DMA
    )
    assert totals["dma_transfer_total_bytes"] == moved


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": lambda x, w: x @ w,
    "gelu": lambda x, w: F.gelu(x),
    "softmax": lambda x, w: torch.softmax(x, -1),
    "norm": lambda x, w: F.layer_norm(x, x.shape[-1:]),
    "add": lambda x, w: x + w.sum(),
    "mask": lambda x, w: torch.where(x > 0, x, -x),
}


@settings(max_examples=20, deadline=None)
@given(
    names=st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=4),
    rows=SIZES,
    columns=st.integers(2, 300),
    chip=st.sampled_from(["trn2", "trn3"]),
    mode=st.sampled_from(["eager", "compile"]),
)
def test_of_operators_and_graphs(
    names: list[str], rows: int, columns: int, chip: str, mode: str
) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        for name in names:
            x = STEPS[name](x, w)
        return x

    torch._dynamo.reset()
    x, w = (torch.empty(n, columns, dtype=torch.bfloat16, device="meta") for n in (rows, columns))
    with torch.no_grad():
        found = torch_trn_emu.estimate(function, x, w, chip=chip, mode=mode)
    _holds(found.counters)
    seconds = sum(row.device_s for row in found.ops)
    assert seconds == pytest.approx(found.device_us * 1e-6)
    assert seconds == pytest.approx(found.counters["total_time"])
    assert sum(row.calls for row in found.ops) == found.counters["launch_count"]
    assert sum(row.share for row in found.ops) == pytest.approx(1.0)
    if mode == "compile":
        assert found.counters["launch_count"] == 1
