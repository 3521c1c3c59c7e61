"""Cycle formulas, counted by hand for tiles whose cost the vendor prints."""

import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines import BEHAVIOURS, cycles, transfer
from torch_trn_emu.isa import OPCODES, Builder, Engine, Instruction, Role, tile


def _instruction(opcode: str, *shapes: tuple[str, int, int, str], **options: object) -> Instruction:
    """shapes: (memory, partitions, free, dtype), the first one written."""
    b = Builder(opcode)
    out, *ins = [
        tile(getattr(b, memory)(f"t{k}", f, dtype), (0, 0), (p, f))
        for k, (memory, p, f, dtype) in enumerate(shapes)
    ]
    return b.emit(opcode, out, *ins, **options)  # type: ignore[arg-type]


def _exponential_with_sum() -> Instruction:
    b = Builder("exponential")
    out, data = (tile(b.sbuf(n, 512, B2), (0, 0), (128, 512)) for n in ("out", "data"))
    total = tile(b.sbuf("total", 1, F4), (0, 0), (128, 1))
    return b.emit("exponential", (out, total), data)


S, P, F4, B2 = "sbuf", "psum", "float32", "bfloat16"
MM = [(P, 128, 512, F4), (S, 128, 128, B2), (S, 128, 512, B2)]
MM4 = [(P, 128, 512, F4), (S, 128, 128, F4), (S, 128, 512, F4)]
HIDDEN = {"load": "background"}


@pytest.mark.parametrize(
    ("chip", "instruction", "expected"),
    [
        ("trn2", _instruction("nc_matmul", *MM, **HIDDEN), 512),
        ("trn2", _instruction("nc_matmul", *MM4, **HIDDEN), 4 * 512),
        ("trn2", _instruction("nc_matmul", *MM), 512 + 128 / 4),
        (
            "trn2",
            _instruction(
                "nc_matmul", (P, 128, 8, F4), (S, 128, 128, B2), (S, 128, 8, B2), **HIDDEN
            ),
            64,
        ),
        ("trn2", _instruction("nc_transpose", (P, 128, 128, B2), (S, 128, 128, B2)), 128),
        ("trn3", _instruction("nc_transpose", (P, 128, 128, B2), (S, 128, 128, B2)), 64),
        ("trn1", _instruction("nc_transpose", (P, 128, 128, F4), (S, 128, 128, F4)), 4 * 128),
        ("trn2", _instruction("nc_transpose", (P, 128, 128, F4), (S, 128, 128, F4)), 2 * 128),
        ("trn2", _instruction("activation", (S, 128, 500, B2), (P, 128, 500, F4), op="exp"), 500),
        ("trn2", _instruction("activation", (S, 128, 8, B2), (P, 128, 8, F4), op="exp"), 64),
        ("trn2", _instruction("tensor_copy", (S, 128, 512, B2), (S, 128, 512, B2)), 128),
        ("trn1", _instruction("tensor_copy", (S, 128, 512, B2), (S, 128, 512, B2)), 512),
        ("trn2", _instruction("tensor_copy", (S, 128, 512, B2), (P, 128, 512, B2)), 256),
        ("trn2", _instruction("tensor_copy", (S, 128, 512, B2), (P, 128, 512, F4)), 512),
        ("trn2", _instruction("tensor_tensor", *[(S, 128, 512, F4)] * 3, op="add"), 1024),
        ("trn2", _instruction("tensor_tensor", *[(S, 128, 512, B2)] * 3, op="add"), 512),
        ("trn2", _instruction("tensor_tensor", *[(S, 128, 512, B2)] * 3, op="max"), 1024),
        (
            "trn2",
            _instruction("tensor_tensor", *[(S, 128, 512, F4)] * 3, op="add", engine=Engine.GPSIMD),
            150 + 512,
        ),
        ("trn2", _instruction("tensor_reduce", (S, 128, 1, B2), (S, 128, 512, B2), op="add"), 256),
        ("trn2", _instruction("tensor_reduce", (S, 128, 1, F4), (S, 128, 512, B2), op="add"), 512),
        ("trn2", _instruction("reciprocal", (S, 128, 512, F4), (S, 128, 512, F4)), 8 * 512),
        ("trn2", _instruction("bn_aggr", (S, 128, 2, F4), (S, 128, 60, F4)), 260),
        ("trn3", _instruction("exponential", (S, 128, 512, B2), (S, 128, 512, B2)), 128),
        ("trn3", _instruction("exponential", (S, 128, 512, F4), (S, 128, 512, B2)), 256),
        ("trn3", _exponential_with_sum(), 512 / 4 + 64),
        (
            "trn2",
            _instruction(
                "scalar_tensor_tensor",
                *[(S, 128, 512, F4)] * 3,
                op0="multiply",
                imm0=2.0,
                op1="add",
            ),
            1024,
        ),
        ("trn2", _instruction("rng", (S, 128, 512, "uint32"), seed=1), 512),
        ("trn3", _instruction("rng", (S, 128, 512, "uint32"), seed=1), 128),
        ("trn3", _instruction("rng", (S, 128, 512, "uint32"), seed=1, engine=Engine.GPSIMD), 662),
        ("trn2", _instruction("memset", (S, 128, 512, B2), value=0), 256),
        ("trn2", _instruction("iota", (S, 128, 512, "int32"), channel=1), 150 + 512),
        ("trn2", _instruction("nc_n_gather", *[(S, 128, 1000, F4)] * 3), 2 * 150 + 2 * 1000),
        ("trn2", _instruction("local_gather", *[(S, 128, 1000, F4)] * 3), 150 + 1000 / 8),
        ("trn2", _instruction("max8", (S, 1, 8, F4), (S, 1, 1024, B2)), 1024),
    ],
)
def test_cycles(chip: str, instruction: Instruction, expected: float) -> None:
    assert cycles(instruction, get_chip(chip)) == pytest.approx(expected)


def test_every_opcode_has_a_behaviour() -> None:
    assert set(BEHAVIOURS) == set(OPCODES)


def _load(p: int, f: int, dtype: str) -> Instruction:
    b = Builder("load")
    x, t = b.hbm("x", (p, f), dtype, Role.INPUT), b.sbuf("t", f, dtype)
    return b.load(tile(t, (0, 0), (p, f)), tile(x, (0, 0), (p, f)))


def test_a_full_tile_uses_all_dma_engines() -> None:
    trn2 = get_chip("trn2")
    t = transfer(_load(128, 1024, "bfloat16"), trn2)
    assert t.engines == 16
    # 8 runs of 2 KiB on each engine
    assert t.engine_s == pytest.approx(8 * 2048 / 23e9 + trn2.dma.completion_write_s)
    assert t.hbm_read_bytes == 128 * 2048
    assert t.hbm_s == pytest.approx(128 * 2048 / 725e9 / trn2.hbm.read_efficiency)


def test_one_row_uses_one_dma_engine_and_pays_a_descriptor() -> None:
    trn2 = get_chip("trn2")
    t = transfer(_load(1, 1, "float32"), trn2)
    assert t.engines == 1
    assert t.engine_s == trn2.dma.descriptor_min_s + trn2.dma.completion_write_s


def test_two_cores_of_a_stack_share_its_bandwidth() -> None:
    alone, shared = (transfer(_load(128, 1024, "float32"), get_chip("trn2"), n) for n in (1, 2))
    assert shared.hbm_s == pytest.approx(2 * alone.hbm_s)


@pytest.mark.parametrize(
    ("chip", "step", "factor"), [("trn1", 4, 1), ("trn1", 5, 2), ("trn2", 5, 1)]
)
def test_wide_strides_halve_the_rate_of_trn1(chip: str, step: int, factor: int) -> None:
    b = Builder("strided")
    near, far = b.sbuf("near", 200, F4), b.sbuf("far", 200 * step, F4)
    source = tile(far, (0, 0), (128, 200), step=(1, step))  # 16 or 20 bytes apart
    i = b.emit("tensor_reduce", tile(near, (0, 0), (128, 200)), source, op="max")
    assert cycles(i, get_chip(chip)) == factor * 200


@pytest.mark.parametrize(("n", "expected"), [(512, 512 + 64), (10, 64 + 64)])
def test_a_scalar_operation_with_its_maximum(n: int, expected: int) -> None:
    b = Builder("reduce")
    scores, kept, top = b.psum("s", n), b.sbuf("k", n, F4), b.sbuf("t", 1, F4)
    to = (tile(kept, (0, 0), (128, n)), tile(top, (0, 0), (128, 1)))
    source = tile(scores, (0, 0), (128, n))
    i = b.emit("tensor_scalar_reduce", to, source, op0="multiply", imm0=1.0, op="max")
    assert cycles(i, get_chip("trn2")) == expected
