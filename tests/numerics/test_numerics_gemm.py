"""Matrix products within the float32 accumulation bound of gemm.h, for every operand and layout."""

from itertools import product

import numpy as np
import pytest
from numerics_library import DTYPES, ELEMENTS, GROUPINGS, Mx, Numerics, Op

OPS = {
    "none": Op(),
    "bfloat16": Op(kind="bfloat16"),
    "tfloat32": Op(kind="tfloat32"),
    "mxfp8": Op(kind="mx"),
    "mxfp4": Op(kind="mx", mx=Mx(element="float4_e2m1fn")),
    "wrapped": Op(kind="mx", mx=Mx(grouping="wrapped")),
}
# [batch, m, n, k]: one tile, edges of tiles and panels, ragged blocks, thin and long.
SHAPES = [(1, 1, 1, 1), (1, 12, 32, 32), (1, 13, 33, 31), (2, 40, 70, 65), (1, 6, 300, 100)]
SHAPES += [(1, 300, 5, 70), (1, 1, 100, 530), (1, 100, 1, 300), (1, 97, 260, 513), (3, 2, 2, 2)]
SHAPES += [(1, 4, 70, 600), (1, 40, 70, 64)]


def operand(
    rng: np.random.Generator, shape: tuple[int, int, int], dtype: np.dtype, layout: int
) -> np.ndarray:
    """[batch, rows, cols] in one of four layouts: plain, transposed, strided, both reversed."""
    b, r, c = shape
    if layout == 1:
        return rng.standard_normal((b, c, r)).astype(dtype).transpose(0, 2, 1)
    if layout == 2:
        return rng.standard_normal((b, r, 2 * c + 1)).astype(dtype)[:, :, 1::2]
    if layout == 3:
        return rng.standard_normal((b, r, c)).astype(dtype)[:, ::-1, ::-1]
    return rng.standard_normal(shape).astype(dtype)


def rounded(numerics: Numerics, x: np.ndarray, op: Op, k_axis: int) -> np.ndarray:
    """The operand as the product sees it, in float64; the rounding itself has tests of its own."""
    if op.kind == "mx":
        values = [numerics.quantize_dequantize(y, k_axis, op.mx, np.float32) for y in x]
        return np.stack(values).astype(np.float64)
    y = np.ascontiguousarray(x).astype(np.float32)
    if op.kind != "none":
        y = numerics.round_to(op.kind, y).reshape(x.shape)
    return y.astype(np.float64)


def within_bound(numerics: Numerics, a, b, a_op: Op, b_op: Op, **options) -> None:
    left, right = rounded(numerics, a, a_op, 1), rounded(numerics, b, b_op, 0)
    k = a.shape[2] + a.shape[2] % 2
    u = 2.0**-24
    bound = k * u / (1 - k * u) * (np.abs(left) @ np.abs(right)) + k * 2.0**-126
    got = numerics.gemm(a, b, a_op=a_op, b_op=b_op, **options)
    assert np.all(np.abs(got - left @ right) <= bound)
    reference = numerics.gemm(a, b, a_op=a_op, b_op=b_op, reference=True)
    assert np.all(np.abs(reference - left @ right) <= bound)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_the_bound(each_isa: Numerics, shape: tuple[int, int, int, int]) -> None:
    batch, m, n, k = shape
    rng = np.random.default_rng(0)
    for i, (a_op, b_op) in enumerate(product(OPS.values(), OPS.values())):
        a = operand(rng, (batch, m, k), DTYPES[i % 3], i % 4)
        b = operand(rng, (batch, k, n), DTYPES[(i + i // 3) % 3], i // 4 % 4)
        within_bound(each_isa, a, b, a_op, b_op)


@pytest.mark.parametrize("layouts", list(product(range(4), range(4))), ids=str)
def test_layouts_do_not_matter(each_isa: Numerics, layouts: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for op, dtype in product(OPS.values(), DTYPES):
        a = operand(rng, (2, 50, 75), dtype, layouts[0])
        b = operand(rng, (2, 75, 40), dtype, layouts[1])
        got = each_isa.gemm(a, b, a_op=op, b_op=op)
        plain = each_isa.gemm(np.ascontiguousarray(a), np.ascontiguousarray(b), a_op=op, b_op=op)
        assert got.tobytes() == plain.tobytes()


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_stochastic_operands_are_those_of_quantize(
    each_isa: Numerics, element: str, grouping: str
) -> None:
    rng = np.random.default_rng(2)
    mx = Mx(element=element, grouping=grouping, stochastic=True, seed=4, offset=2)
    for layout, (m, n, k) in product(range(4), [(40, 50, 70), (5, 300, 600), (300, 5, 90)]):
        a = operand(rng, (1, m, k), DTYPES[0], layout)
        b = operand(rng, (1, k, n), DTYPES[1], layout)
        within_bound(each_isa, a, b, Op(kind="mx", mx=mx), Op(kind="mx", mx=mx))


def test_exact_where_sums_are_exact(each_isa: Numerics) -> None:
    rng = np.random.default_rng(3)
    for m, n, k in [(5, 5, 5), (130, 270, 1030), (1, 64, 700)]:
        a = rng.integers(-8, 9, (1, m, k)).astype(np.float32)
        b = rng.integers(-8, 9, (1, k, n)).astype(np.float32)
        assert np.array_equal(each_isa.gemm(a, b), a @ b)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("binades", [1, 6, 20])
def test_products_with_ones_are_the_rounded_operand(
    each_isa: Numerics, element: str, binades: int
) -> None:
    rng = np.random.default_rng(binades)
    k, n = 101, 75
    ones, op = Op(kind="bfloat16"), Op(kind="mx", mx=Mx(element=element))
    for dtype, layout in product(DTYPES[:2], range(4)):
        x = operand(rng, (1, k, n), np.dtype(np.float32), layout)
        x = (x * np.exp2(rng.integers(-binades, binades, x.shape))).astype(dtype)
        wanted = each_isa.quantize_dequantize(x[0], 0, op.mx, np.float32)
        eye = np.eye(k, dtype=np.float32)[None]
        assert np.array_equal(each_isa.gemm(eye, x, a_op=ones, b_op=op)[0], wanted)
        turned = x.transpose(0, 2, 1)
        assert np.array_equal(each_isa.gemm(turned, eye, a_op=op, b_op=ones)[0], wanted.T)


@pytest.mark.parametrize("layouts", list(product(range(4), range(4))), ids=str)
def test_long_contractions_in_chunks(each_isa: Numerics, layouts: tuple[int, int]) -> None:
    # Longer than a chunk of any cache, with whole numbers: every order of the sums is exact.
    rng = np.random.default_rng(6)
    for (m, n), op in product([(30, 70), (200, 33)], [OPS["none"], OPS["bfloat16"]]):
        a, b = (
            np.rint(2 * operand(rng, (1, *shape), DTYPES[0], layout)).astype(np.float32)
            for shape, layout in zip([(m, 2101), (2101, n)], layouts, strict=True)
        )
        addend = rng.integers(-9, 10, (1, 1, n)).astype(np.float32)
        assert np.array_equal(each_isa.gemm(a, b, a_op=op, b_op=op), a @ b)
        got = each_isa.gemm(a, b, a_op=op, b_op=op, alpha=0.5, addend=addend)
        assert np.array_equal(got, 0.5 * (a @ b) + addend)


@pytest.mark.parametrize("out", DTYPES, ids=str)
@pytest.mark.parametrize("addend", ["none", "row", "column", "full", "scalar", "transposed"])
def test_epilogue(each_isa: Numerics, out: np.dtype, addend: str) -> None:
    rng = np.random.default_rng(4)
    for m, n, dtype in [(37, 70, DTYPES[0]), (1, 70, DTYPES[1]), (70, 3, DTYPES[2])]:
        # Whole numbers: sums are exact, so the one rounding at the end is all that is seen.
        a = rng.integers(-9, 10, (2, m, 40)).astype(np.float32)
        b = rng.integers(-9, 10, (2, 40, n)).astype(np.float32)
        shapes = {"none": None, "row": (1, 1, n), "column": (2, m, 1), "full": (2, m, n)}
        shapes |= {"scalar": (1, 1, 1), "transposed": (2, n, m)}
        shape = shapes[addend]
        d = None if shape is None else rng.integers(-99, 100, shape).astype(dtype)
        d = d.transpose(0, 2, 1) if addend == "transposed" else d
        alpha, beta = 0.5, 2.0
        wanted = alpha * (a.astype(np.float64) @ b)
        if d is not None:
            wanted = wanted + beta * d.astype(np.float64)
        got = each_isa.gemm(a, b, out=out, alpha=alpha, beta=beta, addend=d)
        assert np.array_equal(got.astype(np.float64), wanted.astype(np.float32).astype(out))


def test_no_addend_is_read_where_beta_is_zero(each_isa: Numerics) -> None:
    a, b = np.ones((1, 3, 4), np.float32), np.ones((1, 4, 50), np.float32)
    nan = np.full((1, 3, 50), np.nan, np.float32)
    assert (each_isa.gemm(a, b, beta=0.0, addend=nan) == 4).all()


def test_result_strides_and_in_place(each_isa: Numerics) -> None:
    rng = np.random.default_rng(5)
    for m, n in [(30, 70), (200, 3), (3, 200)]:
        a = rng.integers(-9, 10, (2, m, 33)).astype(np.float32)
        b = rng.integers(-9, 10, (2, 33, n)).astype(np.float32)
        wanted = a @ b
        for c in (
            np.zeros((2, m, n + 5), np.float32)[:, :, :n],
            np.zeros((2, n, m), np.float32).transpose(0, 2, 1),
            np.zeros((2, m, 2 * n), np.float32)[:, :, ::2],
        ):
            each_isa.gemm(a, b, c=c)
            assert np.array_equal(c, wanted)
            each_isa.gemm(a, b, c=c, addend=c)
            assert np.array_equal(c, 2 * wanted)


def test_nothing_else_is_written(each_isa: Numerics) -> None:
    a, b = np.ones((1, 13, 20), np.float32), np.ones((1, 20, 35), np.float32)
    frame = np.full((1, 20, 80), 7.0, np.float32)
    each_isa.gemm(a, b, c=frame[:, 2:15, 5:40])
    assert (frame[:, 2:15, 5:40] == 20).all()
    frame[:, 2:15, 5:40] = 7
    assert (frame == 7).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (1, 0, 4, 5), (1, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty(each_isa: Numerics, shape: tuple[int, int, int, int]) -> None:
    batch, m, n, k = shape
    a, b = np.zeros((batch, m, k), np.float32), np.zeros((batch, k, n), np.float32)
    for op in OPS.values():
        d = np.full((batch, m, n), 3.0, np.float32)
        got = each_isa.gemm(a, b, a_op=op, b_op=op, addend=d, beta=2.0)
        assert np.array_equal(got, 2 * d)
        assert not each_isa.gemm(a, b, a_op=op, b_op=op).any()


@pytest.mark.parametrize("out", DTYPES[1:], ids=str)
def test_stochastic_results(each_isa: Numerics, out: np.dtype) -> None:
    rng = np.random.default_rng(6)
    for m, n in [(20, 70), (100, 3)]:
        a = rng.integers(-900, 900, (2, m, 3)).astype(np.float32) / 64
        b = rng.integers(-900, 900, (2, 3, n)).astype(np.float32) / 64
        options = {"out": out, "stochastic": True, "seed": 3, "offset": 1}
        got = each_isa.gemm(a, b, **options)
        exact = (a.astype(np.float64) @ b).astype(np.float32)
        wanted = each_isa.convert(
            np.ascontiguousarray(exact), out, stochastic=True, seed=3, offset=1
        )
        assert got.tobytes() == wanted.tobytes()


def test_bfloat16_subnormals_count(each_isa: Numerics) -> None:
    """They would be zero to the host's bfloat16 product."""
    for m, n in [(20, 40), (40, 20), (200, 300)]:
        a = np.zeros((1, m, 64), DTYPES[1])
        b = np.zeros((1, 64, n), DTYPES[1])
        a[0, m - 1, 3] = 2.0**-130
        b[0, 3, :] = 2.0**100
        assert (each_isa.gemm(a, b)[0, m - 1] == 2.0**-30).all()
        swapped = each_isa.gemm(b.transpose(0, 2, 1), a.transpose(0, 2, 1))
        assert (swapped[0, :, m - 1] == 2.0**-30).all()
        tiny = np.full((1, m, 64), 2.0**-130, np.float32)
        big = np.full((1, 64, n), 2.0**100, np.float32)
        for kind in ("bfloat16", "mx"):
            got = each_isa.gemm(tiny, big, a_op=Op(kind=kind), b_op=Op(kind=kind))
            assert (got == 64 * 2.0**-30).all()


def test_nan_stays_in_its_rows(each_isa: Numerics) -> None:
    a, b = np.ones((1, 50, 40), np.float32), np.ones((1, 40, 60), np.float32)
    a[0, 7, 3] = np.nan
    for op in OPS.values():
        got = each_isa.gemm(a, b, a_op=op, b_op=op)
        assert np.isnan(got[0, 7]).all()
        assert np.isfinite(np.delete(got[0], 7, 0)).all()


def test_threads_do_not_matter(numerics: Numerics) -> None:
    rng = np.random.default_rng(7)
    for batch, m, n, k in [(1, 300, 200, 300), (1, 5, 700, 300), (9, 40, 40, 40), (1, 700, 3, 90)]:
        a = rng.standard_normal((batch, m, k)).astype(np.float32)
        b = rng.standard_normal((batch, k, n)).astype(np.float32)
        for op in OPS.values():
            results = []
            for threads in (1, 2, 3):
                numerics.threads(threads)
                results.append(numerics.gemm(a, b, a_op=op, b_op=op).tobytes())
            assert len(set(results)) == 1
