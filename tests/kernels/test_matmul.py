"""Matmul programs compute the product on the machine, at small and ragged sizes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernels.matmul import SERIAL
from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.formats.mx import MX_FORMATS, dequantize_mx, quantize_mx
from torch_trn_emu.isa import dump, validate
from torch_trn_emu.kernels.matmul import COMPILER, HAND, Schedule, matmul
from torch_trn_emu.timing import price

RNG = np.random.default_rng(1)
SIZES = [(1, 1, 1), (5, 7, 3), (130, 128, 64), (128, 256, 513), (200, 300, 600), (64, 130, 40)]


def _round(x: np.ndarray, dtype: str) -> np.ndarray:
    named = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}.get(dtype)
    return x.astype(named or getattr(ml_dtypes, dtype)).astype(np.float32)


def _run(chip: str, m: int, k: int, n: int, **options: object) -> tuple[np.ndarray, ...]:
    options.setdefault("compute", "float32")
    dtype = str(options.pop("dtype", "float32"))
    batch = int(str(options.get("batch", 1)))
    lhs = _round(RNG.standard_normal((batch, m, k)), dtype)
    rhs = _round(RNG.standard_normal((batch, k, n)), dtype)
    program = matmul(
        m,
        k,
        n,
        chip=get_chip(chip),
        lhs_dtype=dtype,
        rhs_dtype=dtype,
        out_dtype="float32",
        **options,  # type: ignore[arg-type]
    )
    validate(program, get_chip(chip))
    inputs = {
        "lhs": lhs if options.get("lhs_layout", "mk") == "mk" else lhs.transpose(0, 2, 1),
        "rhs": rhs if options.get("rhs_layout", "kn") == "kn" else rhs.transpose(0, 2, 1),
    }
    return Machine(get_chip(chip)).run(program, inputs)["out"], lhs, rhs


def _bound(lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """float32 accumulation of k products: k units in the last place of the sum of magnitudes."""
    k = lhs.shape[-1]
    return (k + 2) * 2.0**-24 * (np.abs(lhs).astype(float) @ np.abs(rhs).astype(float)) + 1e-30


def _agrees(got: np.ndarray, lhs: np.ndarray, rhs: np.ndarray) -> None:
    exact = lhs.astype(np.float64) @ rhs.astype(np.float64)
    assert (np.abs(got - exact) <= _bound(lhs, rhs)).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", ["mk kn", "km kn", "mk nk", "km nk"])
def test_float32(size: tuple[int, int, int], layout: str) -> None:
    lhs_layout, rhs_layout = layout.split()
    _agrees(*_run("trn2", *size, lhs_layout=lhs_layout, rhs_layout=rhs_layout))


@pytest.mark.parametrize("schedule", [HAND, COMPILER, SERIAL], ids=["hand", "compiler", "serial"])
def test_schedules_compute_the_same(schedule: object) -> None:
    _agrees(*_run("trn2", 300, 700, 1100, schedule=schedule))


@pytest.mark.parametrize("size", [(100, 200, 60), (300, 512, 700)])
@pytest.mark.parametrize("layout", ["mk kn", "km kn", "mk nk", "km nk"])
def test_bfloat16_in_any_layout(size: tuple[int, int, int], layout: str) -> None:
    lhs_layout, rhs_layout = layout.split()
    options = {"lhs_layout": lhs_layout, "rhs_layout": rhs_layout, "compute": "bfloat16"}
    _agrees(*_run("trn2", *size, dtype="bfloat16", **options))


def test_batches_and_cores() -> None:
    _agrees(*_run("trn2", 40, 64, 50, batch=3))
    program = matmul(1024, 256, 512, chip=get_chip("trn2"), cores=2)
    assert program.buffers[2].shape == (1, 512, 512)
    assert program.model_flops == 2 * 1024 * 256 * 512


def test_bfloat16_products_are_exact() -> None:
    _agrees(*_run("trn2", 100, 200, 60, dtype="bfloat16", compute="bfloat16"))


def test_float32_operands_are_rounded_to_the_compute_format_on_load() -> None:
    got, lhs, rhs = _run("trn2", 100, 200, 60, compute="bfloat16")
    _agrees(got, _round(lhs, "bfloat16"), _round(rhs, "bfloat16"))


@pytest.mark.parametrize("k", [256, 200, 512 + 130, 40])
@pytest.mark.parametrize("layout", ["mk", "km"])
def test_float8_takes_two_rows_at_once(k: int, layout: str) -> None:
    got, lhs, rhs = _run(
        "trn2", 70, k, 60, dtype="float8_e5m2", compute="float8_e5m2", lhs_layout=layout
    )
    _agrees(got, lhs, rhs)


@pytest.mark.parametrize("size", [(64, 512, 96), (30, 1024, 40), (128, 100, 20), (9, 45, 600)])
@pytest.mark.parametrize("layout", ["mk kn", "km kn", "mk nk"])
def test_mxfp8_quantizes_both_operands_along_the_contraction(
    size: tuple[int, int, int], layout: str
) -> None:
    lhs_layout, rhs_layout = layout.split()
    got, lhs, rhs = _run(
        "trn3", *size, dtype="bfloat16", compute="mxfp8", lhs_layout=lhs_layout,
        rhs_layout=rhs_layout,
    )  # fmt: skip
    mx = MX_FORMATS["mxfp8"]
    left = dequantize_mx(*quantize_mx(lhs, mx), mx)
    right = dequantize_mx(*quantize_mx(rhs.transpose(0, 2, 1), mx), mx).transpose(0, 2, 1)
    _agrees(got, left, right)


@pytest.mark.parametrize(("chip", "compute"), [("trn3", "mxfp8"), ("trn1", "bfloat16")])
def test_what_streams_by_often_is_prepared_once(chip: str, compute: str) -> None:
    small = Schedule(block_bytes=1)
    m, k, n = 1100, 640, 1050
    options = {"compute": compute, "dtype": "bfloat16", "rhs_layout": "nk", "schedule": small}
    got, lhs, rhs = _run(chip, m, k, n, **options)
    if compute == "mxfp8":
        mx = MX_FORMATS["mxfp8"]
        lhs = dequantize_mx(*quantize_mx(lhs, mx), mx)
        rhs = dequantize_mx(*quantize_mx(rhs.transpose(0, 2, 1), mx), mx).transpose(0, 2, 1)
    _agrees(got, lhs, rhs)
    program = matmul(m, k, n, chip=get_chip(chip), compute=compute, rhs_layout="nk", schedule=small)
    assert "ready" in dump(program)


@pytest.mark.parametrize("tiles", [3, 5, 6, 9])
@pytest.mark.parametrize("rest", [0, 45])
@pytest.mark.parametrize(
    ("chip", "compute", "dtype", "tile"),
    [("trn1", "bfloat16", "bfloat16", 128), ("trn3", "bfloat16", "bfloat16", 128),
     ("trn2", "float8_e5m2", "float8_e5m2", 256), ("trn3", "mxfp8", "bfloat16", 512)],
)  # fmt: skip
def test_tiles_of_the_contraction_that_fill_no_group(
    tiles: int, rest: int, chip: str, compute: str, dtype: str, tile: int
) -> None:
    k = tiles * tile + rest
    for layouts in ({}, {"lhs_layout": "km", "rhs_layout": "nk"}):
        got, lhs, rhs = _run(chip, 20, k, 30, dtype=dtype, compute=compute, **layouts)
        if compute == "mxfp8":
            mx = MX_FORMATS["mxfp8"]
            lhs = dequantize_mx(*quantize_mx(lhs, mx), mx)
            rhs = dequantize_mx(*quantize_mx(rhs.transpose(0, 2, 1), mx), mx).transpose(0, 2, 1)
        _agrees(got, lhs, rhs)


@pytest.mark.parametrize("layout", ["mk kn", "km nk"])
@pytest.mark.parametrize(("m", "n"), [(513, 1030), (1030, 513)])
def test_wide_blocks(layout: str, m: int, n: int) -> None:
    """Where the usual ones would bring a factor again for the last row."""
    lhs_layout, rhs_layout = layout.split()
    options = {"compute": "bfloat16", "lhs_layout": lhs_layout, "rhs_layout": rhs_layout}
    _agrees(*_run("trn2", m, 2100, n, dtype="bfloat16", **options))


CHUNKED = Schedule(long_contraction=1000)


@pytest.mark.parametrize("k", [8192, 4096 + 512, 4096 + 1, 8192 + 1536 + 131])
@pytest.mark.parametrize("layout", ["mk kn", "km kn", "mk nk", "km nk"])
@pytest.mark.parametrize("chip", ["trn1", "trn3"])
def test_long_contractions_pass_in_chunks(k: int, layout: str, chip: str) -> None:
    lhs_layout, rhs_layout = layout.split()
    options = {"lhs_layout": lhs_layout, "rhs_layout": rhs_layout, "schedule": CHUNKED}
    _agrees(*_run(chip, 30, k, 70, dtype="bfloat16", compute="bfloat16", **options))
    _agrees(*_run(chip, 140, k, 20, batch=2, **options))


@pytest.mark.parametrize("size", [(30, 8192, 70), (20, 4096 + 2048 + 45, 40), (9, 4096 + 7, 100)])
@pytest.mark.parametrize("layout", ["mk kn", "km kn", "mk nk"])
def test_chunks_of_mxfp8(size: tuple[int, int, int], layout: str) -> None:
    lhs_layout, rhs_layout = layout.split()
    got, lhs, rhs = _run(
        "trn3", *size, dtype="bfloat16", compute="mxfp8", lhs_layout=lhs_layout,
        rhs_layout=rhs_layout, schedule=CHUNKED,
    )  # fmt: skip
    mx = MX_FORMATS["mxfp8"]
    left = dequantize_mx(*quantize_mx(lhs, mx), mx)
    right = dequantize_mx(*quantize_mx(rhs.transpose(0, 2, 1), mx), mx).transpose(0, 2, 1)
    _agrees(got, left, right)


def test_chunks_that_several_blocks_read_are_prepared_once() -> None:
    m, k, n = 5, 4096 + 7, 2060
    got, lhs, rhs = _run(
        "trn3", m, k, n, dtype="bfloat16", compute="mxfp8", schedule=CHUNKED, rhs_layout="nk"
    )
    mx = MX_FORMATS["mxfp8"]
    left = dequantize_mx(*quantize_mx(lhs, mx), mx)
    right = dequantize_mx(*quantize_mx(rhs.transpose(0, 2, 1), mx), mx).transpose(0, 2, 1)
    _agrees(got, left, right)
    options = {"compute": "mxfp8", "rhs_layout": "nk", "schedule": CHUNKED}
    assert "lhs ready" in dump(matmul(m, k, n, chip=get_chip("trn3"), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "compute"),
    [(f"trn{i}", compute) for i in (1, 2, 3) for compute in ("bfloat16", "float32")]
    + [("trn3", "mxfp8")],
)
@pytest.mark.parametrize(("m", "n"), [(1024, 1024), (1, 4096), (4096, 65)])
def test_time_grows_with_the_contraction(name: str, compute: str, m: int, n: int) -> None:
    chip = get_chip(name)
    dtype = "float32" if compute == "float32" else "bfloat16"

    def seconds(k: int) -> float:
        program = matmul(m, k, n, chip=chip, compute=compute, lhs_dtype=dtype, rhs_dtype=dtype)
        return price(program, chip).total_s

    edge = COMPILER.long_contraction
    assert seconds(edge + 1) < 1.5 * seconds(edge)
    each = [seconds(k) / k for k in (2 * edge, 50_304, 65_537, 98_304, 262_144)]
    assert max(each) < 1.2 * min(each)


@pytest.mark.parametrize("name", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [(8192, 8192, 8192), (4096, 8192, 8192), (32, 16384, 128)])
def test_large_ones_fit(name: str, compute: str, size: tuple[int, int, int]) -> None:
    validate(matmul(*size, chip=get_chip(name), compute=compute), get_chip(name))


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 300)] * 3),
    chip=st.sampled_from(["trn1", "trn2", "trn3"]),
    lhs_layout=st.sampled_from(["mk", "km"]),
    rhs_layout=st.sampled_from(["kn", "nk"]),
    compute=st.sampled_from(["float32", "bfloat16"]),
)
def test_any_size(size: tuple[int, int, int], chip: str, compute: str, **layouts: str) -> None:
    _agrees(*_run(chip, *size, compute=compute, dtype=compute, **layouts))


@pytest.mark.parametrize(("m", "k", "n"), [(1, 300, 70), (5, 128, 600), (130, 70, 33)])
def test_matrices_picked_from_a_table(m: int, k: int, n: int) -> None:
    lhs = _round(RNG.standard_normal((3, m, k)), "bfloat16")
    table = _round(RNG.standard_normal((5, k, n)), "bfloat16")
    index = np.array([4, -5, 2])
    program = matmul(m, k, n, chip=get_chip("trn2"), batch=3, out_dtype="float32", picked=5)
    assert not validate(program, get_chip("trn2"))
    machine = Machine(get_chip("trn2"))
    (out,) = machine.run(program, {"lhs": lhs, "rhs": table, "picked": index}).values()
    np.testing.assert_allclose(out.reshape(3, m, n), lhs @ table[index], rtol=1e-4, atol=1e-4)
