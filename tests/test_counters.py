"""Every counter by hand, on a program small enough to count; and what must hold for any program."""

import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.counters import (
    COUNTERS,
    Clock,
    Unit,
    clocked,
    combine,
    counters,
    derive,
    fold,
    unit_of,
)
from torch_trn_emu.isa import Builder, Engine, Program, Role, tile
from torch_trn_emu.kernels.matmul import matmul
from torch_trn_emu.kernels.pointwise import activation, pointwise
from torch_trn_emu.ops.normalization import row_op
from torch_trn_emu.timing import Run, price

TRN1, TRN2, TRN3 = get_chip("trn1"), get_chip("trn2"), get_chip("trn3")
F4, B2 = "float32", "bfloat16"


def _program() -> Program:
    """Two trips of a little of everything, on two cores."""
    b = Builder("everything", cores=2, model_flops=2 * 2 * 2 * 128 * 64 * 256)
    x = b.hbm("x", (128, 256), F4, Role.INPUT)
    w = b.hbm("w", (128, 64), F4, Role.WEIGHT)
    rows = b.hbm("rows", (4, 1), "int32", Role.INPUT)
    y = b.hbm("y", (64, 256), B2, Role.OUTPUT)
    spill = b.hbm("spill", (64, 256), B2, Role.SPILL)
    tx, tw = tile(b.sbuf("tx", 256, F4), (0, 0), (128, 256)), b.sbuf("tw", 64, F4)
    tw_whole = tile(tw, (0, 0), (128, 64))
    psum = tile(b.psum("psum", 256), (0, 0), (64, 256))
    turned = tile(b.psum("turned", 64, B2), (0, 0), (128, 64))
    ty = b.sbuf("ty", 256, B2)
    whole = tile(ty, (0, 0), (64, 256))
    ids = tile(b.sbuf("ids", 1, "int32"), (0, 0), (4, 1))
    picked = tile(b.sbuf("picked", 256, F4), (0, 0), (4, 256))
    with b.loop(2):
        b.load(tx, tile(x, (0, 0), (128, 256)))
        b.load(tw_whole, tile(w, (0, 0), (128, 64)))
        b.emit("nc_matmul", psum, tw_whole, tx, load="background")
        b.emit("activation", whole, psum, op="exp")
        b.emit("nc_transpose", turned, tile(ty, (0, 0), (64, 128)))
        b.emit("tensor_copy", whole, whole)
        b.emit("iota", ids, channel=1)
        b.emit("core_barrier", ())
        b.emit("dma_gather", picked, tile(x, (0, 0), (128, 256)), ids, queue="gather")
        b.store(tile(spill, (0, 0), (64, 256)), whole)
        b.load(whole, tile(spill, (0, 0), (64, 256)))
        b.store(tile(y, (0, 0), (64, 256)), whole)
    assert rows.role is Role.INPUT
    return b.build()


CORES, TRIPS = 2, 2
ALL = CORES * TRIPS
X, W, Y, ROWS, GATHERED = 128 * 256 * 4, 128 * 64 * 4, 64 * 256 * 2, 4 * 4, 4 * 256 * 4
MM, TURN = 2 * 128 * 64 * 256, 2 * 64 * 128 * 64
PEAK = 2 * 128 * 128 * 2.4e9 * CORES
STACK = 2.9e12 / 4
WORK_S = TRIPS * (256 * 4 + max(64, 64)) / 2.4e9
TENSOR_S = 2 * WORK_S  # at half duty: its first microsecond
SCALAR_S = TRIPS * 256 / 1.2e9 + 1.28e-6  # one table, loaded once
VECTOR_S = TRIPS * 64 / 0.96e9  # 256 elements, four a cycle
GPSIMD_S = TRIPS * (150 + 1) / 1.2e9
SYNC_S = TRIPS * 64 / 1.2e9


def _dma_s(runs: int, run_bytes: int) -> float:
    """One DMA engine's time for its share of a transfer on 16 engines."""
    return runs / 16 * max(run_bytes / 23e9, 12e-9) + 160e-9


# x: 128 runs of 1 KiB, w: 128 of 256 B, spill twice and y: 64 of 512 B
ENGINE_S = TRIPS * (_dma_s(128, 1024) + _dma_s(128, 256) + 3 * _dma_s(64, 512))
GATHER_S = 1024 / 23e9 + 160e-9  # 4 runs on 4 of the engines


@pytest.fixture(scope="module")
def run() -> Run:
    return price(_program(), TRN2)


HBM_READ, HBM_WRITTEN = ALL * (X + W + Y + GATHERED), ALL * 2 * Y
INTENSITY = ALL * 2 * MM / (HBM_READ + HBM_WRITTEN)
DMA_S = ENGINE_S + GATHER_S  # 2 trips of 4 engines: no engine gathers twice


def _times(total: float) -> dict[str, float]:
    execution = total - 11e-6
    return {
        "total_time": total,
        "total_exec_time": execution,
        "total_active_time": max(DMA_S, SCALAR_S),
        "neuroncore_cycle_count": execution * 1.2e9,
    }


def _flops(total: float) -> dict[str, float]:
    return {
        "model_flops": ALL * MM,
        "hardware_flops": ALL * (2 * MM + TURN),
        "transpose_flops": ALL * TURN,
        "adjusted_hardware_flops": ALL * (2 * MM * 4 + TURN),
        "adjusted_transpose_flops": ALL * TURN,
        "array_flops": ALL * (2 * MM + TURN),
        "mm_arithmetic_intensity": INTENSITY,
        "peak_flops_bandwidth_ratio": PEAK / STACK,
        "mfu_estimated_percent": 100 * ALL * MM / PEAK / total,
        "mfu_hlo_estimated_percent": 100 * ALL * MM / PEAK / total,
        "mfu_inst_estimated_percent": 100 * ALL * 2 * MM / PEAK / total,
        "hfu_estimated_percent": 100 * ALL * (2 * MM + TURN) / PEAK / total,
        "mfu_max_achievable_estimated_percent": 100 * INTENSITY / (PEAK / STACK),
    }


def _bytes(total: float) -> dict[str, float]:
    return {
        "hbm_read_bytes": HBM_READ,
        "hbm_write_bytes": HBM_WRITTEN,
        "mbu_estimated_percent": 100 * (HBM_READ + HBM_WRITTEN) / total / STACK,
        "mbu_min_read_util_percent": 100 * CORES * (X + W + ROWS) / total / STACK,
        # read: two operands, half of ty turned, ty copied, the gather's index, spill, result
        "sbuf_read_bytes": ALL * (X + W + Y // 2 + Y + ROWS + Y + Y),
        # written: x, w, exp, copy, iota, gathered rows, reload
        "sbuf_write_bytes": ALL * (X + W + Y + Y + ROWS + GATHERED + Y),
        "psum_read_bytes": ALL * 64 * 256 * 4,
        "psum_write_bytes": ALL * (64 * 256 * 4 + 128 * 64 * 2),
        "psum_read_sbuf_write_count": ALL,
        "psum_read_sbuf_write_bytes": ALL * Y,
        "sbuf_high_water_bytes": 128 * (4 * 256 + 4 * 64 + 2 * 256 + 4 * 1 + 4 * 256),
        "psum_high_water_bytes": 128 * (4 * 256 + 2 * 64),
        "spill_save_bytes": ALL * Y,
        "spill_reload_bytes": ALL * Y,
        "input_queue_bytes": ALL * (X + GATHERED),
        "output_queue_bytes": ALL * Y,
        "weight_queue_bytes": ALL * W,
        "weight_size_bytes": CORES * W,
        "inputs_and_weights_size_bytes": CORES * (X + W + ROWS),
    }


def _dma(run: Run) -> dict[str, float]:
    return {
        "dma_active_time": DMA_S,
        "dma_active_cycles": DMA_S * 1.2e9,
        "dma_packet_time": 16 * ENGINE_S + TRIPS * 4 * GATHER_S,
        "dma_transfer_count": ALL * 6,
        "dma_transfer_total_bytes": ALL * (X + W + GATHERED + 3 * Y),
        "dma_transfer_average_bytes": (X + W + GATHERED + 3 * Y) / 6,
        "dma_queue_count": 6,
        "static_dma_transfer_count": ALL * 5,
        "static_dma_transfer_total_bytes": ALL * (X + W + 3 * Y),
        "software_dynamic_dma_transfer_count": ALL,
        "software_dynamic_dma_transfer_total_bytes": ALL * GATHERED,
        "dma_transfer_time": sum(
            r.span_s for r in run.retired if r.instruction.engine is Engine.DMA
        ),
    }


def _engines(run: Run) -> dict[str, float]:
    """By name: seconds at work, and instructions of one core's trip."""
    worked = {
        "tensor": (TENSOR_S, 3),
        "vector": (VECTOR_S, 1),
        "scalar": (SCALAR_S, 1),
        "gpsimd": (GPSIMD_S, 1),
        "sync": (SYNC_S, 1),
    }
    expected = {
        "matmul_instruction_count": ALL * 2,  # float32: two passes
        "activate_instruction_count": ALL,
        "activate_instruction_time": SCALAR_S,
        "activation_table_load_count": CORES,
        "tensor_engine_throttled_time": TENSOR_S - WORK_S,
        "throttle_avg_util_limit": 50.0,
        "event_count": ALL * 12,
    }
    for name, (seconds, instructions) in worked.items():
        mine = (r for r in run.retired if r.instruction.engine is Engine(name))
        expected[f"{name}_engine_active_time"] = seconds
        expected[f"{name}_engine_instruction_time"] = seconds + sum(r.wait_s for r in mine)
        expected[f"{name}_engine_instruction_count"] = ALL * instructions
    return expected


def _expected(run: Run) -> dict[str, float]:
    total = run.total_s
    expected = _times(total) | _flops(total) | _bytes(total) | _dma(run) | _engines(run)
    shares = [name for name in COUNTERS if name.endswith("active_time_percent")]
    return expected | {
        name: 100 * expected[name.removesuffix("_percent")] / total for name in shares
    }


@pytest.mark.parametrize("name", [n for n, row in COUNTERS.items() if row.clock is None])
def test_by_hand(name: str, run: Run) -> None:
    assert counters(run)[name] == pytest.approx(_expected(run)[name], rel=2e-5), (
        name
    )  # ticks are picoseconds


def test_hand_count_covers_the_table(run: Run) -> None:
    assert set(_expected(run)) | set(CLOCK) == set(COUNTERS)
    assert len(COUNTERS) >= 60


# launches, dispatch, busy, idle, collectives, their time, exposed: all different
CLOCK = dict(
    zip(
        ("launch_count", "host_dispatch_time", "core_busy_time", "core_idle_time", "cc_op_count",
         "cc_op_active_time", "cc_exposed_time"),
        (7.0, 0.5, 2.5, 1.5, 3.0, 0.75, 0.25),
        strict=True,
    )
)  # fmt: skip


def test_counters_of_a_clock(run: Run) -> None:
    clock = Clock(
        launches=7, dispatch_s=0.5, busy_s=2.5, idle_s=1.5, collectives=3, collective_s=0.75,
        exposed_s=0.25,
    )  # fmt: skip
    assert clocked(clock) == CLOCK
    every = derive(fold(run) | clocked(clock), TRN2, 2)
    assert list(every) == list(COUNTERS)
    assert {name: every[name] for name in CLOCK} == CLOCK
    assert {n: every[n] for n in every if n not in CLOCK} == counters(run)


def test_a_program_alone_has_no_clock(run: Run) -> None:
    assert not set(CLOCK) & set(counters(run))
    assert {unit_of(name) for name in CLOCK} == {"count", "s"}
    assert unit_of("a counter of another version") == ""


def test_ridge_of_trn1_is_the_published_one() -> None:
    one = pointwise("copy", 1000, [F4], F4, [], chip=TRN1)
    ridge = counters(price(one, TRN1))["peak_flops_bandwidth_ratio"]
    assert ridge == pytest.approx(223.78, rel=1e-3)  # AccelOpt's NKIBench profiles


PROGRAMS = [
    (TRN1, matmul(512, 512, 512, chip=TRN1, compute=F4)),
    (TRN2, matmul(1000, 700, 900, chip=TRN2, cores=2)),
    (TRN2, matmul(512, 1024, 512, chip=TRN2, compute="float8_e5m2", lhs_dtype="float8_e5m2",
                  rhs_dtype="float8_e5m2")),
    (TRN3, matmul(2048, 2048, 2048, chip=TRN3, compute="mxfp8", cores=2)),
    (TRN3, row_op("softmax", 1000, 777, B2, chip=TRN3, cores=2)),
    (TRN2, pointwise("gelu", 10**6, [B2], B2, [activation("gelu")], chip=TRN2)),
]  # fmt: skip


@pytest.mark.parametrize(("chip", "program"), PROGRAMS, ids=lambda v: getattr(v, "name", ""))
def test_invariants(chip: object, program: Program) -> None:
    result = counters(price(program, chip))  # type: ignore[arg-type]
    for name in result:
        if COUNTERS[name].unit is Unit.PERCENT:
            assert 0 <= result[name] <= 100, name
        if name.endswith("_engine_active_time"):
            assert result[name] <= result["total_time"]
    mfu, hfu = result["mfu_estimated_percent"], result["hfu_estimated_percent"]
    assert mfu <= hfu * (1 + 1e-9)
    moved = sum(result[f"{q}_queue_bytes"] for q in ("input", "weight", "output"))
    assert moved <= result["hbm_read_bytes"] + result["hbm_write_bytes"]
    assert result["adjusted_hardware_flops"] >= result["adjusted_transpose_flops"]


def test_launches_multiply_and_programs_add(run: Run) -> None:
    other = price(row_op("softmax", 256, 64, B2, chip=TRN2, cores=2), TRN2)
    a, b = fold(run), fold(other)
    both = combine([(a, 3), (b, 2)])
    for name, row in COUNTERS.items():
        if row.fold is not None and row.how == "sum":
            assert both[name] == pytest.approx(3 * a[name] + 2 * b[name])
    assert both["dma_queue_count"] == 6
    assert set(derive(both, TRN2, 2)) == set(COUNTERS) - set(CLOCK)


def test_every_row_has_one_formula() -> None:
    for row in COUNTERS.values():
        assert [row.fold, row.derive, row.clock].count(None) == 2, row.name
        assert row.doc, row.name
        assert row.source in ("profile", "ours"), row.name
