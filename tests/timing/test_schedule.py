"""The scheduler: hand counts, equality with its twin, and exact extrapolation of loops."""

import time
from array import array
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.chip import CHIPS, Chip, get_chip
from torch_trn_emu.isa import Access, Builder, Engine, Program, Role, tile
from torch_trn_emu.timing import Run, price
from torch_trn_emu.timing.price import native, unrolled

TRN1, TRN2, TRN3 = get_chip("trn1"), get_chip("trn2"), get_chip("trn3")
OVERHEAD = TRN2.launch.kernel_overhead_s


def _copies(count: int, *, slots: int = 2, free: int = 64, rows: int = 128) -> Program:
    """`count` tiles through SBUF: load, scale on the Vector engine, store."""
    b = Builder("copies")
    x = b.hbm("x", (count * rows, free), "float32", Role.INPUT)
    y = b.hbm("y", (count * rows, free), "float32", Role.OUTPUT)
    t = b.sbuf("t", free, "float32", slots=slots)
    whole = tile(t, (0, 0), (rows, free))
    with b.loop(count) as i:
        b.fresh(t)
        b.load(whole, tile(x, (i * rows, 0), (rows, free)))
        b.emit("tensor_scalar", whole, whole, op0="multiply", imm0=2.0)
        b.store(tile(y, (i * rows, 0), (rows, free)), whole)
    return b.build()


def test_one_tile_by_hand() -> None:
    run = price(_copies(1), TRN2)
    dma, vector = TRN2.dma, TRN2.vector_engine
    # 8 runs of 256 bytes on each of 16 engines, each at least a descriptor; a 2 KiB load and
    # store are less than what HBM needs for 32 KiB
    move = 8 * max(256 / dma.engine_bytes_per_s, dma.descriptor_min_s) + dma.completion_write_s
    latency = dma.start_latency_s + dma.completion_latency_s
    compute = (64 + vector.pipeline_latency_cycles) / vector.clock_hz
    expected = 2 * (latency + move) + compute + 2 * TRN2.launch.semaphore_latency_s
    assert run.total_s - OVERHEAD == pytest.approx(expected, rel=1e-6)


def test_instructions_that_are_alike_are_one() -> None:
    """Elsewhere in the same buffers: the same record. Another operation, or size: another."""
    b = Builder("alike")
    t, u = b.sbuf("t", 64, "float32"), b.sbuf("u", 64, "float32")
    for buffer in (t, u):
        b.emit("memset", tile(buffer, (0, 0), (128, 64)), value=1.0)
    for start, size, op in ((0, 16, "add"), (16, 16, "add"), (32, 16, "multiply"), (32, 8, "add")):
        here, there = (tile(x, (0, start), (128, size)) for x in (t, u))
        b.emit("tensor_tensor", here, here, there, op=op)
    run = price(b.build(), TRN2)
    found = [(r.instruction.opcode, r.instruction.attributes.get("op"), r.count)
             for r in run.retired]  # fmt: skip
    assert found == [
        ("memset", None, 1), ("memset", None, 1), ("tensor_tensor", "add", 2),
        ("tensor_tensor", "multiply", 1), ("tensor_tensor", "add", 1),
    ]  # fmt: skip
    assert run.simulated_instructions == 6


def test_dependent_scalar_instructions_are_as_far_apart_as_measured() -> None:
    # The NC-v2 guide: a chain of 1-element activations starts one every 189 ns.
    b = Builder("chain")
    t = b.sbuf("t", 1, "float32")
    one = tile(t, (0, 0), (1, 1))
    b.emit("memset", one, value=0.0)
    with b.loop(1000):
        b.emit("activation", one, one, op="copy")
    run = price(b.build(), TRN1, trace_limit=1001)
    starts = [r.start_s for r in run.records[1:]]
    assert starts[-1] - starts[-2] == pytest.approx(189e-9, rel=0.25)


def test_engines_overlap_and_double_buffering_helps() -> None:
    single, double = (price(_copies(64, slots=n, free=1024), TRN2).total_s for n in (1, 2))
    assert double < 0.8 * single


def test_activation_tables_are_loaded_when_they_change() -> None:
    b = Builder("tables")
    t = b.sbuf("t", 64, "float32")
    a = tile(t, (0, 0), (128, 64))
    b.emit("memset", a, value=0.0)
    with b.loop(10):
        b.emit("activation", a, a, op="exp")
        b.emit("activation", a, a, op="gelu")
        b.emit("activation", a, a, op="square")  # needs no table
    run = price(b.build(), TRN2)
    assert run.table_loads == 20


def test_vector_and_gpsimd_take_turns_on_trn1_only() -> None:
    b = Builder("port")
    t, u = b.sbuf("t", 4096, "float32"), b.sbuf("u", 4096, "float32")
    b.emit("memset", tile(t, (0, 0), (128, 4096)), value=1.0)
    b.emit("memset", tile(u, (0, 0), (128, 4096)), value=1.0, engine=Engine.GPSIMD)
    program = b.build()
    times = {
        chip.name: price(program, chip).total_s - chip.launch.kernel_overhead_s
        for chip in (TRN1, TRN2)
    }
    assert times["trn1"] > (4096 / 1.12e9 + 4096 / 1.4e9)
    assert times["trn2"] < 1.2 * 4096 / 0.96e9


def test_fast_vector_modes_share_a_bus_with_gpsimd_on_trn2() -> None:
    def seconds(dtype: str) -> float:
        b = Builder("bus")
        t, u = b.sbuf("t", 8192, dtype), b.sbuf("u", 8192, "float32")
        whole = tile(t, (0, 0), (128, 8192))
        b.emit("memset", tile(u, (0, 0), (128, 8192)), value=1.0, engine=Engine.GPSIMD)
        b.emit("tensor_scalar", whole, whole, op0="multiply", imm0=2.0)
        return price(b.build(), TRN2).total_s - OVERHEAD

    gpsimd_s = (150 + 8192) / 1.2e9
    assert seconds("float32") < 8192 / 0.96e9 + 0.1 * gpsimd_s
    assert seconds("bfloat16") > gpsimd_s + 8192 / 4 / 0.96e9


def test_two_cores_share_hbm() -> None:
    one = _copies(200, slots=4, free=8192)
    two = Builder("two", cores=2)
    shared = Program(name="two", buffers=one.buffers, body=one.body, cores=2)
    assert two.cores == 2
    assert price(shared, TRN2).total_s > price(one, TRN2).total_s


def _same(a: Run, b: Run) -> bool:
    parts = ("total_s", "dma_engine_busy_s", "hbm_busy_s", "table_loads")
    sums = [[(r.count, r.busy_s, r.wait_s, r.span_s) for r in run.retired] for run in (a, b)]
    return sums[0] == sums[1] and all(getattr(a, p) == getattr(b, p) for p in parts)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 5, 128])
def test_extrapolated_is_unrolled_is_the_twin(chip: str, slots: int, rows: int) -> None:
    program = _copies(3000, slots=slots, rows=rows)
    fast = price(program, get_chip(chip))
    full = price(program, get_chip(chip), extrapolate=False)
    twin = price(program, get_chip(chip), scheduler=unrolled)
    assert _same(fast, full)
    assert _same(full, twin)
    assert full.simulated_instructions == 9000
    assert fast.simulated_instructions < 3000


ENGINES = st.sampled_from([Engine.VECTOR, Engine.GPSIMD, Engine.SCALAR])


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Loops up to three deep over tiles of a few buffers, with ragged transfers."""
    b = Builder("drawn", cores=draw(st.integers(1, 2)))
    x = b.hbm("x", (128, 64), "float32", Role.INPUT)
    y = b.hbm("y", (128, 64), "float32", Role.OUTPUT)
    pool = [
        b.sbuf(f"t{k}", 64, "float32", slots=draw(st.integers(1, 3)), parts=2) for k in range(3)
    ]

    psum, wide = b.psum("p", 512), b.sbuf("wide", 512, "float32")

    def access() -> Access:
        buffer = draw(st.sampled_from(pool))
        rows = draw(st.sampled_from([1, 3, 16, 100, 128]))
        at = tile(buffer, (0, 0), (rows, 64), part=draw(st.integers(0, 1)))
        return replace(at, age=draw(st.integers(0, buffer.slots - 1)))

    def block(depth: int) -> None:
        for _ in range(draw(st.integers(2, 5))):
            kind = draw(st.sampled_from(["load", "store", "copy", "act", "mm", "fresh", "loop"]))
            if kind == "loop" and depth < 3:
                with b.loop(draw(st.sampled_from([1, 2, 7, 30]))):
                    block(depth + 1)
            elif kind == "fresh":
                b.fresh(draw(st.sampled_from(pool)))
            elif kind in ("load", "store"):
                a = access()
                there = tile(x if kind == "load" else y, (0, 0), (a.partitions, 64))
                b.load(a, there) if kind == "load" else b.store(there, a)
            elif kind == "copy":
                b.emit("tensor_copy", access(), access(), engine=draw(ENGINES))
            elif kind == "mm":
                a, free = access(), draw(st.sampled_from([1, 64, 512]))
                into = tile(psum, (0, 0), (64, free))
                moving = tile(wide, (0, 0), (a.partitions, free))
                b.emit("nc_matmul", into, a, moving, load="background")
            elif kind == "act":
                b.emit("activation", access(), access(), op=draw(st.sampled_from(["exp", "gelu"])))

    for _ in range(draw(st.integers(1, 2))):
        with b.loop(draw(st.sampled_from([20, 500, 3000]))):
            block(1)
            b.store(tile(y, (0, 0), (128, 64)), tile(pool[0], (0, 0), (128, 64)))
        b.emit("tensor_copy", access(), access())
    return b.build()


@settings(max_examples=150, deadline=None)
@given(program=programs(), chip=st.sampled_from(list(CHIPS)))
def test_drawn_programs_extrapolate_exactly(program: Program, chip: str) -> None:
    fast = price(program, get_chip(chip))
    if sum(r.count for r in fast.retired) <= 200_000:
        assert _same(fast, price(program, get_chip(chip), extrapolate=False))


@settings(max_examples=40, deadline=None)
@given(program=programs(), chip=st.sampled_from([TRN1, TRN3]))
def test_drawn_programs_equal_the_twin(program: Program, chip: Chip) -> None:
    fast = price(program, chip)
    if sum(r.count for r in fast.retired) <= 3_000:
        assert _same(fast, price(program, chip, scheduler=unrolled))


def _products(count: int, *, between: int = 0) -> Program:
    """`count` products of 512 columns, each after an activation of `between` elements."""
    b = Builder("products")
    a, x = b.sbuf("a", 128, "bfloat16"), b.sbuf("x", 512, "bfloat16")
    t, psum = b.sbuf("t", max(1, between), "bfloat16"), b.psum("p", 512)
    moving, out = tile(x, (0, 0), (128, 512)), tile(psum, (0, 0), (128, 512))
    with b.loop(count):
        if between:
            wait = tile(t, (0, 0), (128, between))
            b.emit("activation", wait, moving, op="copy")
            b.emit("activation", moving, wait, op="copy")
        b.emit("nc_matmul", out, tile(a, (0, 0), (128, 128)), moving, load="background")
    return b.build()


def _tensor_s(program: Program, chip: Chip) -> float:
    return price(program, chip).engine_busy_s(Engine.TENSOR)


def test_the_tensor_engine_starts_at_half_duty() -> None:
    one, warm_up = 512 / 2.4e9, TRN2.tensor_engine.warm_up_s
    assert _tensor_s(_products(1), TRN2) == pytest.approx(2 * one, rel=1e-5)
    # 3 us at half duty do the work of 1.5 us, so 1.5 us are lost whatever follows.
    assert _tensor_s(_products(1000), TRN2) == pytest.approx(1000 * one + warm_up / 2, rel=1e-5)
    assert _tensor_s(_products(1000), TRN1) == pytest.approx(1000 * 512 / 2.8e9, rel=1e-5)


def test_the_tensor_engine_stays_at_half_duty_where_it_is_idle() -> None:
    one = 512 / 2.4e9
    rare = _products(1000, between=4096)  # two activations of 3.4 us for each product
    assert _tensor_s(rare, TRN2) == pytest.approx(1000 * 2 * one, rel=1e-5)
    often = _products(1000, between=64)  # idle for less than it works
    assert _tensor_s(often, TRN2) < 1000 * 2 * one


def test_a_trace_keeps_the_first_records_in_program_order() -> None:
    run = price(_copies(100), TRN2, trace_limit=30)
    assert len(run.records) == 30
    assert [r.instruction.opcode for r in run.records[:3]] == [
        "dma_copy",
        "tensor_scalar",
        "dma_copy",
    ]
    assert run.total_s == price(_copies(100), TRN2).total_s


def test_long_loops_cost_no_processor_time() -> None:
    start = time.process_time()
    run = price(_copies(1_000_000), TRN2)
    assert time.process_time() - start < 0.5
    assert run.retired[0].count == 1_000_000


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "ends early"),
        ([1], "unknown encoding"),
        ([4, 6, 1, 1, 1, 1] + [16] * 7 + [1, 1, 1, 1, 0] + [0] * 9 + [0, 0, 5, 7], "has no end"),
        ([4, 6, 1, 1, 1, 1] + [16] * 7 + [1, 1, 1, 1, 0] + [0] * 9 + [1, 3, 0, 0], "out of range"),
        ([4, 6, 1, 1, 1, 0] + [16] * 7 + [1, 1, 1, 1, 0] + [9] + [0] * 8, "out of range"),
        ([4, 6, 1, 1, 1, 0] + [16] * 7 + [1, 1, 1, 1, 0] + [0] * 9 + [7], "too long"),
    ],
)
def test_malformed_encodings_are_refused(words: list[int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        native()(array("q", words))
