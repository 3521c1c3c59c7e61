"""The machine computes what the instructions say and refuses what is undefined."""

import ml_dtypes
import numpy as np
import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.errors import ChipLimit, UndefinedOnChip
from torch_trn_emu.formats.mx import MX_FORMATS, dequantize_mx, quantize_mx
from torch_trn_emu.isa import Affine, Builder, Engine, Program, Role, Wait, tile

TRN2, TRN3 = get_chip("trn2"), get_chip("trn3")
RNG = np.random.default_rng(0)


def _unary(
    opcode: str,
    x: np.ndarray,
    out: tuple[int, int],
    dtype: str = "float32",
    out_dtype: str = "float32",
    **options: object,
) -> np.ndarray:
    """Load x, run one instruction on it, store the result."""
    b = Builder(opcode)
    hx, hy = b.hbm("x", x.shape, dtype, Role.INPUT), b.hbm("y", out, out_dtype, Role.OUTPUT)
    tx, ty = b.sbuf("tx", x.shape[1], dtype), b.sbuf("ty", out[1], out_dtype)
    at_x, at_y = tile(tx, (0, 0), x.shape), tile(ty, (0, 0), out)
    b.load(at_x, tile(hx, (0, 0), x.shape))
    reads = () if options.pop("no_read", False) else (at_x,)
    b.emit(opcode, at_y, *reads, **options)  # type: ignore[arg-type]
    b.store(tile(hy, (0, 0), out), at_y)
    return Machine(TRN3).run(b.build(), {"x": x})["y"]


X = RNG.standard_normal((32, 24)).astype(np.float32)


@pytest.mark.parametrize(
    ("opcode", "options", "expected"),
    [
        ("tensor_copy", {}, X),
        ("activation", {"op": "square", "scale": 2.0}, (2 * X) ** 2),
        ("activation", {"op": "relu"}, np.maximum(X, 0)),
        ("tensor_scalar", {"op0": "multiply", "imm0": 3.0}, 3 * X),
        (
            "tensor_scalar",
            {"op0": "subtract", "imm0": 1.0, "reverse0": True, "op1": "max", "imm1": 0.0},
            np.maximum(1 - X, 0),
        ),
        ("reciprocal", {}, 1 / X),
        ("tensor_scalar", {"op0": "greater", "imm0": 0.0}, (X > 0).astype(np.float32)),
    ],
)
def test_pointwise(opcode: str, options: dict[str, object], expected: np.ndarray) -> None:
    got = _unary(opcode, X, X.shape, **options)
    np.testing.assert_allclose(got, expected, rtol=2e-7)


def test_output_rounds_once_to_nearest_even() -> None:
    got = _unary("tensor_copy", X, X.shape, out_dtype="bfloat16")
    np.testing.assert_array_equal(got, X.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_float_to_integer_rounds_to_even_and_saturates() -> None:
    x = np.array([[0.5, 1.5, 2.5, -300.0, 300.0]], dtype=np.float32)
    got = _unary("tensor_copy", x, x.shape, out_dtype="int8")
    assert got.tolist() == [[0, 2, 2, -128, 127]]


@pytest.mark.parametrize(("op", "reference"), [("add", np.sum), ("max", np.max), ("min", np.min)])
def test_reduce(op: str, reference: object) -> None:
    got = _unary("tensor_reduce", X, (32, 1), op=op)
    np.testing.assert_allclose(got[:, 0], reference(X, axis=1), rtol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("engine", "expected"), [(Engine.VECTOR, 2**24), (Engine.GPSIMD, 2**24 + 1)]
)
def test_only_gpsimd_adds_integers_exactly(engine: Engine, expected: int) -> None:
    x = np.array([[2**24]])
    got = _unary("tensor_scalar", x, (1, 1), "int32", "int32", engine=engine, op0="add", imm0=1)
    assert got.item() == expected


def test_bits_pass_the_vector_engine_untouched() -> None:
    x = np.array([[2**30 + 1]])
    got = _unary("tensor_scalar", x, (1, 1), "int32", "int32", op0="bitwise_and", imm0=3)
    assert got.item() == 1


def test_transposes_agree() -> None:
    x = X[:, :24].copy()
    for opcode, options in (
        ("nc_transpose", {"engine": Engine.VECTOR}),
        ("dma_transpose", {"queue": "t"}),
    ):
        np.testing.assert_array_equal(_unary(opcode, x, (24, 32), **options), x.T)


def test_max8_shuffle_iota_affine_select() -> None:
    np.testing.assert_array_equal(_unary("max8", X, (32, 8)), -np.sort(-X, axis=1)[:, :8])
    mask = tuple(reversed(range(32)))
    np.testing.assert_array_equal(_unary("nc_stream_shuffle", X, X.shape, mask=mask), X[::-1])
    iota = _unary("iota", X, (4, 3), out_dtype="int32", no_read=True, channel=10, step=1, base=5)
    assert iota.tolist() == [[5 + 10 * p + f for f in range(3)] for p in range(4)]
    causal = _unary("affine_select", X, X.shape, channel=1, step=-1, base=0, on_false=-1e9)
    np.testing.assert_array_equal(causal, np.where(np.tri(32, 24, dtype=bool), X, np.float32(-1e9)))


def test_bn_stats_and_aggr() -> None:
    stats = _unary("bn_stats", X, (32, 6))
    np.testing.assert_allclose(stats[:, 1], X[:, ::2].mean(axis=1), rtol=1e-5, atol=1e-7)
    result = _unary("bn_aggr", stats, (32, 2))
    np.testing.assert_allclose(result[:, 0], X.mean(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result[:, 1], X.var(axis=1), rtol=1e-5)


def test_quantize_mx_groups_eight_partitions_of_four() -> None:
    x = RNG.standard_normal((32, 8)).astype(ml_dtypes.bfloat16).astype(np.float32)
    b = Builder("quantize")
    hx = b.hbm("x", x.shape, "bfloat16", Role.INPUT)
    hq = b.hbm("q", x.shape, "float8_e4m3fn", Role.OUTPUT)
    hs = b.hbm("s", (4, 2), "float8_e8m0fnu", Role.OUTPUT)
    tx, tq = b.sbuf("tx", 8, "bfloat16"), b.sbuf("tq", 8, "float8_e4m3fn")
    ts = b.sbuf("ts", 2, "float8_e8m0fnu")
    whole, scales = tile(tq, (0, 0), (32, 8)), tile(ts, (0, 0), (4, 2))
    b.load(tile(tx, (0, 0), (32, 8)), tile(hx, (0, 0), (32, 8)))
    b.emit("quantize_mx", (whole, scales), tile(tx, (0, 0), (32, 8)))
    b.store(tile(hq, (0, 0), (32, 8)), whole)
    b.store(tile(hs, (0, 0), (4, 2)), scales)
    out = Machine(TRN3).run(b.build(), {"x": x})
    for group in range(4):
        for column in range(2):
            block = x[8 * group : 8 * group + 8, 4 * column : 4 * column + 4]
            codes, scale = quantize_mx(block.reshape(-1), MX_FORMATS["mxfp8"])
            expected = dequantize_mx(codes, np.full_like(scale, 127)).reshape(8, 4)
            got = out["q"][8 * group : 8 * group + 8, 4 * column : 4 * column + 4]
            np.testing.assert_array_equal(got, expected)
            assert out["s"][group, column] == 2.0 ** (int(scale[0]) - 127)


def _matmul(accumulate_over: int) -> tuple[Program, np.ndarray, np.ndarray]:
    k, m, n = 64, 32, 48
    a = RNG.standard_normal((k * accumulate_over, m)).astype(np.float32)
    c = RNG.standard_normal((k * accumulate_over, n)).astype(np.float32)
    b = Builder("mm")
    ha = b.hbm("a", a.shape, "float32", Role.INPUT)
    hc = b.hbm("c", c.shape, "float32", Role.INPUT)
    hy = b.hbm("y", (m, n), "float32", Role.OUTPUT)
    ta, tc = b.sbuf("ta", m, "float32", slots=2), b.sbuf("tc", n, "float32", slots=2)
    ty, acc = b.sbuf("ty", n, "float32"), b.psum("acc", n)
    b.fresh(acc)
    for k0, ks in b.tiles(k * accumulate_over, k):
        b.fresh(ta, tc)
        b.load(tile(ta, (0, 0), (ks, m)), tile(ha, (k0, 0), (ks, m)))
        b.load(tile(tc, (0, 0), (ks, n)), tile(hc, (k0, 0), (ks, n)))
        b.emit(
            "nc_matmul",
            tile(acc, (0, 0), (m, n)),
            tile(ta, (0, 0), (ks, m)),
            tile(tc, (0, 0), (ks, n)),
        )
    b.emit("tensor_copy", tile(ty, (0, 0), (m, n)), tile(acc, (0, 0), (m, n)))
    b.store(tile(hy, (0, 0), (m, n)), tile(ty, (0, 0), (m, n)))
    return b.build(), a, c


@pytest.mark.parametrize("steps", [1, 3])
def test_matmul_accumulates_in_psum(steps: int) -> None:
    program, a, c = _matmul(steps)
    got = Machine(TRN2).run(program, {"a": a, "c": c})["y"]
    np.testing.assert_allclose(got, a.T @ c, rtol=1e-5, atol=1e-5)


def test_gather_and_scatter_add() -> None:
    table = RNG.standard_normal((10, 6)).astype(np.float32)
    index = np.array([[7], [0], [7], [3]])
    b = Builder("gather")
    ht = b.hbm("table", table.shape, "float32", Role.INPUT)
    hi = b.hbm("index", index.shape, "int32", Role.INPUT)
    hy = b.hbm("y", (4, 6), "float32", Role.OUTPUT)
    hz = b.hbm("z", (10, 6), "float32", Role.OUTPUT)
    ti, ty = b.sbuf("ti", 1, "int32"), b.sbuf("ty", 6, "float32")
    rows, ids = tile(ty, (0, 0), (4, 6)), tile(ti, (0, 0), (4, 1))
    b.load(ids, tile(hi, (0, 0), (4, 1)))
    b.emit("dma_gather", rows, tile(ht, (0, 0), (10, 6)), ids, queue="g")
    b.store(tile(hy, (0, 0), (4, 6)), rows)
    b.load(tile(hz, (0, 0), (10, 6)), tile(ht, (0, 0), (10, 6)))
    b.emit("dma_scatter_add", tile(hz, (0, 0), (10, 6)), rows, ids, queue="s")
    out = Machine(TRN2).run(b.build(), {"table": table, "index": index})
    np.testing.assert_array_equal(out["y"], table[index[:, 0]])
    expected = table.copy()
    np.add.at(expected, index[:, 0], table[index[:, 0]])
    np.testing.assert_allclose(out["z"], expected, rtol=1e-6)


def test_equal_values_have_places_of_their_own() -> None:
    """The vendor's example: descending for nc_match_replace8, ascending for nc_find_index8."""
    data = np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], dtype=np.float32)
    b = Builder("places")
    hx, hv = b.hbm("x", (1, 11), "float32", Role.INPUT), b.hbm("v", (1, 8), "float32", Role.OUTPUT)
    hd, ha = (b.hbm(n, (1, 8), "int32", Role.OUTPUT) for n in ("descending", "ascending"))
    hr = b.hbm("rest", (1, 11), "float32", Role.OUTPUT)
    x, rest = (tile(b.sbuf(n, 11, "float32"), (0, 0), (1, 11)) for n in ("tx", "tr"))
    eight = tile(b.sbuf("eight", 8, "float32"), (0, 0), (1, 8))
    down, up = (tile(b.sbuf(n, 8, "int32"), (0, 0), (1, 8)) for n in ("down", "up"))
    b.load(x, tile(hx, (0, 0), (1, 11)))
    b.emit("max8", eight, x)
    b.emit("nc_find_index8", up, x, eight)
    b.emit("nc_match_replace8", (rest, down), x, eight, imm=-1.0)
    for to, source in ((hv, eight), (hd, down), (ha, up)):
        b.store(tile(to, (0, 0), (1, 8)), source)
    b.store(tile(hr, (0, 0), (1, 11)), rest)
    out = Machine(TRN2).run(b.build(), {"x": data})
    np.testing.assert_array_equal(out["v"][0], [8, 8, 8, 8, 8, 8, 8, 4])
    np.testing.assert_array_equal(out["descending"][0], [10, 9, 8, 7, 6, 5, 4, 3])
    np.testing.assert_array_equal(out["ascending"][0], [4, 5, 6, 7, 8, 9, 10, 3])
    np.testing.assert_array_equal(out["rest"][0], [1, 2, 3, *[-1] * 8])


def test_indexed_entries_are_put() -> None:
    b = Builder("put")
    hx, hi = b.hbm("x", (2, 6), "float32", Role.INPUT), b.hbm("i", (2, 2), "int32", Role.INPUT)
    hy = b.hbm("y", (4, 3), "float32", Role.OUTPUT)
    x, i = (
        tile(b.sbuf("tx", 6, "float32"), (0, 0), (2, 6)),
        tile(b.sbuf("ti", 2, "int32"), (0, 0), (2, 2)),
    )
    b.load(x, tile(hx, (0, 0), (2, 6)))
    b.load(i, tile(hi, (0, 0), (2, 2)))
    b.emit("dma_scatter", tile(hy, (0, 0), (4, 3)), x, i, queue="put")
    values, index = np.arange(12.0).reshape(2, 6), [[2, 0], [3, 1]]
    out = Machine(TRN2).run(b.build(), {"x": values, "i": index})["y"]
    np.testing.assert_array_equal(out[[2, 0, 3, 1]], values.reshape(4, 3))


def test_reading_what_was_not_written_raises() -> None:
    b = Builder("unwritten")
    y = b.hbm("y", (4, 4), "float32", Role.OUTPUT)
    t = b.sbuf("t", 4, "float32")
    b.emit("memset", tile(t, (0, 0), (2, 4)), value=0.0)
    b.store(tile(y, (0, 0), (4, 4)), tile(t, (0, 0), (4, 4)))
    with pytest.raises(UndefinedOnChip, match=r"dma_copy on the dma engine reads t at \[2, 0\]"):
        Machine(TRN2).run(b.build(), {})


def test_a_fresh_slot_is_unwritten() -> None:
    b = Builder("fresh")
    y = b.hbm("y", (4, 4), "float32", Role.OUTPUT)
    t = b.sbuf("t", 4, "float32")
    b.emit("memset", tile(t, (0, 0), (4, 4)), value=0.0)
    b.fresh(t)
    b.store(tile(y, (0, 0), (4, 4)), tile(t, (0, 0), (4, 4)))
    with pytest.raises(UndefinedOnChip, match="nothing was written"):
        Machine(TRN2).run(b.build(), {})


def test_an_output_left_out_raises() -> None:
    b = Builder("missing")
    b.hbm("y", (4, 4), "float32", Role.OUTPUT)
    with pytest.raises(UndefinedOnChip, match="16 of 16 elements"):
        Machine(TRN2).run(b.build(), {})


def test_over_capacity_raises() -> None:
    b = Builder("large")
    b.sbuf("t", 60_000, "float32")
    with pytest.raises(ChipLimit, match="240000 bytes of sbuf"):
        Machine(TRN2).run(b.build(), {})


def _explicit(*, signal: bool, wait: int | None) -> Program:
    b = Builder("semaphores")
    b.synchronization = "explicit"
    x, y = (b.hbm(n, (4, 4), "float32", r) for n, r in (("x", Role.INPUT), ("y", Role.OUTPUT)))
    t = b.sbuf("t", 4, "float32")
    whole = tile(t, (0, 0), (4, 4))
    b.emit(
        "dma_copy",
        whole,
        tile(x, (0, 0), (4, 4)),
        queue="in",
        signals=("loaded",) if signal else (),
    )
    waits = () if wait is None else (Wait("loaded", Affine(wait)),)
    b.emit("dma_copy", tile(y, (0, 0), (4, 4)), whole, queue="out", waits=waits)
    return b.build()


def test_a_semaphore_orders_a_read_after_a_write() -> None:
    x = np.ones((4, 4), np.float32)
    out = Machine(TRN2).run(_explicit(signal=True, wait=1), {"x": x})
    np.testing.assert_array_equal(out["y"], x)


def test_an_unordered_read_after_write_is_a_race() -> None:
    with pytest.raises(UndefinedOnChip, match=r"race: dma_copy on dma out reads t.*dma in"):
        Machine(TRN2).run(_explicit(signal=True, wait=None), {"x": np.ones((4, 4))})


def test_waiting_for_what_never_comes_raises() -> None:
    with pytest.raises(UndefinedOnChip, match="would hang"):
        Machine(TRN2).run(_explicit(signal=False, wait=1), {"x": np.ones((4, 4))})
