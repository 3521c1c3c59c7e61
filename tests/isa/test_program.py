"""Programs say what was meant: tiles, loops, text; and ask for no more than the chip has."""

import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.errors import ChipLimit, EmulatorBug
from torch_trn_emu.isa import (
    OPCODES,
    Affine,
    Builder,
    Engine,
    Fresh,
    Loop,
    Program,
    Role,
    dump,
    tile,
    validate,
)

TRN2, TRN3 = get_chip("trn2"), get_chip("trn3")


def _copy(m: int, n: int) -> Program:
    b = Builder("copy")
    x = b.hbm("x", (m, n), "float32", Role.INPUT)
    y = b.hbm("y", (m, n), "float32", Role.OUTPUT)
    t = b.sbuf("t", n, "float32", slots=2)
    for row, rows in b.tiles(m, 128):
        b.fresh(t)
        b.load(tile(t, (0, 0), (rows, n)), tile(x, (row, 0), (rows, n)))
        b.store(tile(y, (row, 0), (rows, n)), tile(t, (0, 0), (rows, n)))
    return b.build()


def test_affine_arithmetic() -> None:
    i, j = Affine(0, ((0, 1),)), Affine(0, ((1, 1),))
    e = 3 * i + j * 5 + 7 + i
    assert e.at({0: 2, 1: 1}) == 20
    assert e.bounds({0: 10, 1: 3}) == (7, 4 * 9 + 5 * 2 + 7)
    assert (i + i * -1).terms == ()


def test_full_tiles_make_a_loop_and_the_rest_follows() -> None:
    program = _copy(300, 8)
    loop, *rest = program.body
    assert isinstance(loop, Loop)
    assert loop.trip == 2
    assert len(rest) == 3
    assert len(_copy(128, 8).body) == 3  # a single trip makes no loop
    validate(program, TRN2)


def test_text_names_engines_tiles_and_queues() -> None:
    assert dump(_copy(300, 8)) == (
        "program copy on 1 core(s)\n"
        "  hbm x: float32[300, 8] input\n"
        "  hbm y: float32[300, 8] output\n"
        "  sbuf t: float32[128, 8] scratch parts=1 slots=2\n"
        "  for i0 in 0..2:\n"
        "    fresh t\n"
        "    dma    t+0[128P, 8F] = dma_copy(data=x+1024*i0[128P, 8F], queue='load x')\n"
        "    dma    y+1024*i0[128P, 8F] = dma_copy(data=t+0[128P, 8F], queue='store y')\n"
        "  fresh t\n"
        "  dma    t+0[44P, 8F] = dma_copy(data=x+2048[44P, 8F], queue='load x')\n"
        "  dma    y+2048[44P, 8F] = dma_copy(data=t+0[44P, 8F], queue='store y')"
    )


def test_fresh_slots_of_a_set_have_one_order() -> None:
    """A set of buffers has the order of addresses, which differ from run to run."""
    b = Builder("fresh")
    buffers = [b.sbuf(f"t{k}", 8, "float32", slots=2) for k in range(16)]
    b.fresh(*set(buffers))
    b.fresh(*reversed(buffers))
    moved = [node.buffer for node in b.build().body if isinstance(node, Fresh)]
    assert moved == buffers * 2


def test_tiles_know_their_runs_and_bytes() -> None:
    b = Builder("tiles")
    x = b.hbm("x", (64, 4, 16), "bfloat16", Role.INPUT)
    rows = tile(x, (0, 0, 0), (64, 4, 16))
    assert (rows.partitions, rows.free, rows.run_elements, rows.nbytes) == (64, 64, 64, 8192)
    columns = tile(x, (0, 0, 0), (64, 4, 16), order=(2, 0, 1))
    assert (columns.partitions, columns.free, columns.run_elements) == (16, 256, 1)
    repeated = tile(x, (0, 0, 0), (1, 1, 16), order=(0, 1, 2), step=(0, 0, 1))
    assert repeated.distinct_bytes == 32


def _one(opcode: str, *shapes: tuple[int, int], dst: str = "sbuf", **options: object) -> Program:
    """A program of one instruction on tiles of the given shapes, the first one written."""
    b = Builder(opcode)
    dtype = str(options.pop("dtype", "float32"))
    out, *ins = [
        tile(
            (b.psum if dst == "psum" and not k else b.sbuf)(f"t{k}", f, dtype, partitions=p),
            (0, 0),
            (p, f),
        )
        for k, (p, f) in enumerate(shapes)
    ]
    b.emit(opcode, out, *ins, **options)  # type: ignore[arg-type]
    return b.build()


@pytest.mark.parametrize(
    ("chip", "program", "limit"),
    [
        (
            TRN2,
            _one("nc_matmul", (128, 1024), (128, 128), (128, 1024), dst="psum"),
            "moving free size 1024 exceeds 512",
        ),
        (
            TRN2,
            _one("nc_matmul", (128, 512), (128, 256), (128, 512), dst="psum"),
            "stationary free size 256 exceeds 128",
        ),
        (TRN2, _one("nc_matmul", (128, 512), (128, 128), (128, 512)), "writes to PSUM only"),
        (TRN2, _one("exponential", (128, 8), (128, 8)), "exists from NC-v4, trn2 is NC-v3"),
        (TRN2, _one("tensor_copy", (1, 60_000), (1, 8)), "bytes of sbuf per partition exceed"),
        (TRN2, _one("tensor_copy", (200, 8), (8, 8)), "200 partitions exceed 128"),
        (TRN2, _one("bn_stats", (128, 6), (128, 600)), "free size 600 exceeds 512"),
        (TRN2, _one("nc_transpose", (64, 64), (64, 64), engine=Engine.VECTOR), "exceeds 32 x 32"),
        (TRN2, _one("tensor_copy", (8, 8), (8, 8), engine=Engine.TENSOR), "cannot run it"),
        (
            TRN2,
            _one("tensor_copy", (8, 8), (8, 8), dtype="int64"),
            r"int64 .* is not native to trn2",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_limits_are_quoted(chip: object, program: Program, limit: str) -> None:
    with pytest.raises(ChipLimit, match=limit):
        validate(program, chip)  # type: ignore[arg-type]


def test_out_of_bounds_is_refused_for_the_last_trip() -> None:
    b = Builder("late")
    x = b.hbm("x", (300, 8), "float32", Role.INPUT)
    t = b.sbuf("t", 8, "float32")
    with b.loop(3) as i:
        b.load(tile(t, (0, 0), (128, 8)), tile(x, (i * 128, 0), (128, 8)))
    with pytest.raises(ChipLimit, match="outside its 2400"):
        validate(b.build(), TRN2)


def test_start_partition_rule() -> None:
    b = Builder("start")
    t = b.sbuf("t", 8, "float32")
    b.emit("memset", tile(t, (32, 0), (64, 8)), value=0.0)
    with pytest.raises(ChipLimit, match="not at a multiple of 64"):
        validate(b.build(), TRN2)


def test_malformed_programs_are_our_fault() -> None:
    b = Builder("odd")
    t = b.sbuf("t", 8, "float32")
    b.emit("tensor_copy", tile(t, (0, 0), (8, 8)))
    with pytest.raises(EmulatorBug, match="0 operands read"):
        validate(b.build(), TRN2)
    with pytest.raises(EmulatorBug, match="no opcode"):
        b.emit("gemm", tile(t, (0, 0), (8, 8)))


def test_names_are_the_vendors() -> None:
    assert {"nc_matmul", "nc_matmul_mx", "quantize_mx", "activation", "dma_copy"} <= set(OPCODES)
