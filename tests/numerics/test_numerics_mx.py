"""MX blocks against an oracle of Python fractions, and the kernels against their definition."""

import bisect
from fractions import Fraction
from itertools import product

import ml_dtypes
import numpy as np
import pytest
from numerics_library import BITS, DTYPES, ELEMENTS, GROUPINGS, RULES, Mx, Numerics

BF16 = np.dtype(ml_dtypes.bfloat16)
NAN_CODE = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7F}  # else 0
SHAPES = [(1, 1), (3, 32), (33, 5), (64, 40), (7, 600), (600, 7), (2, 2100)]


def log2_floor(x: Fraction) -> int:
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def value_of(element: str, code: int) -> Fraction | None:
    """The value of a code without its sign; None for one that is no number. [mx] 5.3"""
    exponent, mantissa, specials = BITS[element]
    if specials == "integer":
        return Fraction(code, 2**mantissa)
    power, rest = divmod(code, 2**mantissa)
    top = 2**exponent - 1
    if power == top and (specials == "ieee" or (specials == "fn" and rest == 2**mantissa - 1)):
        return None
    whole = 2**mantissa if power else 0
    return (whole + rest) * Fraction(2) ** (max(power, 1) - top // 2 - mantissa)


MANTISSA = {name: BITS[name][1] for name in ELEMENTS}
SIGN_BIT = {name: 1 << sum(BITS[name][:2]) for name in ELEMENTS}
FINITE = {  # element -> ascending list of (magnitude, code)
    name: [(v, c) for c in range(SIGN_BIT[name]) if (v := value_of(name, c)) is not None]
    for name in ELEMENTS
}
EMAX = {name: log2_floor(FINITE[name][-1][0]) for name in ELEMENTS}


def log2_ceil(x: Fraction) -> int:
    e = log2_floor(x)
    return e if Fraction(2) ** e == x else e + 1


def shared_exponent(rule: str, element: str, amax: float) -> int:
    """The exponent of the block scale of a block with largest magnitude amax > 0."""
    a, emax = Fraction(amax), EMAX[element]
    if rule == "trn3":
        e = log2_floor(a) - (emax - 1)
    elif rule == "ocp_floor":
        e = log2_floor(a) - emax
    elif rule == "ceil":
        e = log2_ceil(a) - emax
    elif rule == "rceil":
        largest = np.float32(FINITE[element][-1][0])
        ratio = np.float32(amax) * (np.float32(1) / largest)
        e = log2_ceil(Fraction(float(ratio))) if ratio > 0 else -127
    else:
        assert rule == "even"
        unit = Fraction(2) ** (log2_floor(a) - MANTISSA[element])
        e = log2_floor((a / unit + Fraction(1, 2)).__floor__() * unit) - emax
    return min(max(e, -127), 127)


def nearest_code(element: str, x: Fraction) -> int:
    """Nearest element, ties to the even code, saturating."""
    finite = FINITE[element]
    at = bisect.bisect_left(finite, (x, 0))
    near = finite[max(at - 1, 0) : at + 1]
    return min(near, key=lambda value: (abs(value[0] - x), value[1] % 2))[1]


def groups(k: int, grouping: str) -> list[list[int]]:
    if grouping == "contiguous":
        return [list(range(i, i + 32)) for i in range(0, k, 32)]
    starts = [(tile, g) for tile in range(0, k, 512) for g in range(16)]
    return [[t + 8 * g + o + i for o in (0, 128, 256, 384) for i in range(8)] for t, g in starts]


def signed(element: str, code: int, negative: bool) -> int:
    if element == "int8":
        return -code & 255 if negative else code
    return code | (SIGN_BIT[element] if negative else 0)


def oracle(x: np.ndarray, axis: int, mx: Mx) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Element codes one a byte, scales, and exact values as float64, all along the last axis."""
    if axis == 0:
        return tuple(y.T for y in oracle(x.T, 1, mx))
    if x.dtype == np.float32 and mx.through_bf16:
        x = x.astype(BF16)
    x = x.astype(np.float64)
    rows, k = x.shape
    index = groups(k, mx.grouping)
    codes = np.zeros((rows, k), np.uint8)
    scales = np.zeros((rows, len(index)), np.uint8)
    values = np.zeros((rows, k))
    cache: dict[tuple[float, int], int] = {}
    for row, (g, block) in product(range(rows), enumerate(index)):
        here = [i for i in block if i < k]
        magnitudes = np.abs(x[row, here])
        if not np.all(np.isfinite(magnitudes)):
            scales[row, g] = 255
            codes[row, here] = NAN_CODE.get(mx.element, 0)
            values[row, here] = np.nan
            continue
        amax = float(max(magnitudes, default=0))
        e = shared_exponent(mx.rule, mx.element, amax) if amax > 0 else -127
        scales[row, g] = e + 127
        for i in here:
            key = (abs(float(x[row, i])), e)
            if key not in cache:
                cache[key] = nearest_code(mx.element, Fraction(key[0]) / Fraction(2) ** e)
            sign = bool(np.signbit(x[row, i]))
            codes[row, i] = signed(mx.element, cache[key], sign)
            magnitude = FINITE[mx.element][cache[key]][0] * Fraction(2) ** e
            values[row, i] = -float(magnitude) if sign else float(magnitude)
    return codes, scales, values


def unpacked(codes: np.ndarray, axis: int, mx: Mx, k: int) -> np.ndarray:
    if mx.element != "float4_e2m1fn":
        return codes
    both = np.stack([codes & 15, codes >> 4], axis + 1)
    shape = list(codes.shape)
    shape[axis] *= 2
    assert not np.take(both.reshape(shape), range(k, shape[axis]), axis).any()  # padding
    return np.take(both.reshape(shape), range(k), axis)


def agrees(numerics: Numerics, x: np.ndarray, axis: int, mx: Mx) -> None:
    codes, scales, values = oracle(x, axis, mx)
    for reference in (False, True):
        got_codes, got_scales = numerics.quantize(x, axis, mx, reference=reference)
        assert np.array_equal(got_scales, scales)
        assert np.array_equal(unpacked(got_codes, axis, mx, x.shape[axis]), codes)
    wanted = values.astype(np.float32)
    for reference in (False, True):
        back = numerics.dequantize(
            got_codes, got_scales, axis, mx, x.shape, np.float32, reference=reference
        )
        assert np.array_equal(back.view(np.uint32) << 1, wanted.view(np.uint32) << 1)
        negative = np.signbit(x) & ((wanted != 0) | (mx.element != "int8"))
        assert np.array_equal(np.signbit(back) | np.isnan(back), negative | np.isnan(back))
    direct = numerics.quantize_dequantize(x, axis, mx, np.float32)
    assert np.array_equal(direct.view(np.uint32), back.view(np.uint32))


def numbers(shape: tuple[int, int], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Blocks of every size, zeros of both signs, subnormals, infinities and NaN."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-14, 14, shape))
    x *= np.exp2(rng.integers(-100, 100, (1, shape[1]))) if dtype != np.float16 else 1
    rare = rng.random(shape)
    x[rare < 0.1] = 0.0
    x[rare < 0.05] = -0.0
    x = x.astype(dtype)
    x[rare > 0.9995] = np.nan
    x[rare > 0.9998] = np.inf
    return x


def close_numbers(shape: tuple[int, int], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Blocks of which most have no element that is subnormal in a format of many binades."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(1, 4, shape) * rng.choice([-1, 1], shape) * np.exp2(rng.integers(-5, 5, shape))
    x *= np.exp2(rng.integers(-120, 118, (1, shape[1]))) if dtype != np.float16 else 1
    rare = rng.random(shape)
    x[rare < 0.1] = 0.0
    x[rare < 0.05] = -0.0
    x[rare > 0.998] *= 2.0**-20
    x = x.astype(dtype)
    x[rare > 0.9999] = np.nan
    return x


CASES = list(product(ELEMENTS, RULES, GROUPINGS, (0, 1)))


@pytest.mark.parametrize(("element", "rule", "grouping", "axis"), CASES)
def test_agrees_with_the_oracle(
    numerics: Numerics, element: str, rule: str, grouping: str, axis: int
) -> None:
    mx = Mx(element=element, rule=rule, grouping=grouping)
    for dtype, shape in zip(DTYPES, [(37, 70), (70, 37), (45, 33)], strict=True):
        agrees(numerics, numbers(shape, dtype), axis, mx)
    if grouping == "wrapped":
        shape = (3, 700) if axis == 1 else (700, 3)
        agrees(numerics, numbers(shape, DTYPES[1]), axis, mx)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("rule", RULES)
def test_extreme_blocks(numerics: Numerics, element: str, rule: str) -> None:
    tiny = np.float32(2.0**-149)
    largest = np.finfo(np.float32).max
    blocks = np.zeros((0, 32), np.float32)
    tops = [0.0, -0.0, tiny, 2.0**-126, 2.0**-127, 2.0**-120, largest, 2.0**127, 1.75, 1.8125, 1.9]
    tops += [448, 464, 1.9375, 1.875, 57344, 6, 5.9, 7, np.nan, np.inf, -np.inf, 2.0**-118]
    tops += list(2.0 ** np.arange(-149, 128, 9))
    for top in np.float32(tops):
        block = top * np.float32(2.0) ** -np.arange(32, dtype=np.float32)
        block[1::2] *= -1
        blocks = np.vstack([blocks, block])
    for through_bf16 in (True, False):
        for axis, x in ((1, blocks), (0, np.ascontiguousarray(blocks.T))):
            agrees(numerics, x, axis, Mx(element=element, rule=rule, through_bf16=through_bf16))


def test_the_chip_never_saturates(numerics: Numerics) -> None:
    x = np.float32(np.linspace(1, 2, 4097)[:-1]).repeat(32).reshape(-1, 32)
    for element, top in (("float8_e4m3fn", 256), ("float8_e5m2", 2**15)):
        codes, scales = numerics.quantize(x, 1, Mx(element=element, through_bf16=False))
        assert numerics.decode(element, codes).max() == top
        assert (scales == 127 - (EMAX[element] - 1)).all()


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fast_equals_reference(each_isa: Numerics, element: str, dtype: np.dtype) -> None:
    cases = product(RULES, GROUPINGS, (0, 1), (True, False), (True, False))
    for i, (rule, grouping, axis, through_bf16, stochastic) in enumerate(cases):
        shape = SHAPES[i % len(SHAPES)]
        mx = Mx(element=element, rule=rule, grouping=grouping, through_bf16=through_bf16,
                stochastic=stochastic, seed=i, offset=7)  # fmt: skip
        x = (numbers if i // 2 % 2 else close_numbers)(shape, dtype, i)
        codes, scales = each_isa.quantize(x, axis, mx)
        wanted_codes, wanted_scales = each_isa.quantize(x, axis, mx, reference=True)
        assert np.array_equal(scales, wanted_scales)
        assert np.array_equal(codes, wanted_codes)
        for out in DTYPES:
            y = each_isa.dequantize(codes, scales, axis, mx, shape, out)
            wanted = each_isa.dequantize(codes, scales, axis, mx, shape, out, reference=True)
            assert y.tobytes() == wanted.tobytes()
            if out != np.float16:
                direct = each_isa.quantize_dequantize(x, axis, mx, out)
                assert direct.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("axis", [0, 1])
def test_strides_do_not_matter(numerics: Numerics, element: str, grouping: str, axis: int) -> None:
    mx = Mx(element=element, grouping=grouping)
    for dtype in DTYPES:
        base = numbers((130, 1100), dtype)
        views = [base[:, ::2], base[::-1, 5:], base.T, base[3:50, ::-3], base.T[::2, ::3]]
        views += [base[:1, :1], base[:, 7:8], np.broadcast_to(base[:1], (40, 1100))]
        for x in views:
            codes, scales = numerics.quantize(x, axis, mx)
            wanted_codes, wanted_scales = numerics.quantize(np.ascontiguousarray(x), axis, mx)
            assert np.array_equal(codes, wanted_codes)
            assert np.array_equal(scales, wanted_scales)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_empty(numerics: Numerics, shape: tuple[int, int], axis: int) -> None:
    x = np.zeros(shape, np.float32)
    for grouping in GROUPINGS:
        codes, scales = numerics.quantize(x, axis, Mx(grouping=grouping))
        assert codes.size == 0
        assert scales.size == 0


def test_the_bfloat16_step(numerics: Numerics) -> None:
    """1 + 2^-8 is a tie in bfloat16 and goes to 1; without the step it is not."""
    x = np.full((1, 32), 1 + 2**-4 + 2**-9, np.float32)  # just above a tie of E4M3
    assert (numerics.quantize_dequantize(x, 1, Mx(), np.float32) == 1).all()
    direct = numerics.quantize_dequantize(x, 1, Mx(through_bf16=False), np.float32)
    assert (direct == 1.125).all()


def test_two_codes_a_byte(numerics: Numerics) -> None:
    x = np.float32([[1, 2, 3]])
    mx = Mx(element="float4_e2m1fn", rule="ocp_floor")
    codes, _ = numerics.quantize(x, 1, mx)
    # The scale is 2^(1 - 2): codes of 2, 4, 6; then a zero.
    assert codes.tolist() == [[0x64, 0x07]]
    codes, _ = numerics.quantize(x.T, 0, mx)
    assert codes.tolist() == [[0x64], [0x07]]


def test_stochastic_elements_keep_the_mean(numerics: Numerics) -> None:
    x = np.full((4000, 32), 1.03125, np.float32)  # a quarter of a step of E4M3 above 1
    x[:, 0] = 1.5
    y = numerics.quantize_dequantize(x, 1, Mx(stochastic=True, seed=3), np.float32)[:, 1:]
    assert set(np.unique(y)) == {np.float32(1), np.float32(1.125)}
    assert abs(np.mean(y > 1) - 0.25) < 5 * (0.25 * 0.75 / y.size) ** 0.5


def test_threads_do_not_matter(numerics: Numerics) -> None:
    x = numbers((333, 1111), DTYPES[0])
    for axis in (0, 1):
        mx = Mx(stochastic=True, seed=1)
        numerics.threads(1)
        one = numerics.quantize(x, axis, mx)
        numerics.threads(2)
        two = numerics.quantize(x, axis, mx)
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_in_place(numerics: Numerics) -> None:
    from ctypes import byref, c_int, c_int64

    from numerics_library import pointer

    for axis, grouping in product((0, 1), GROUPINGS):
        x = numbers((70, 600), DTYPES[0])
        mx = Mx(grouping=grouping)
        wanted = numerics.quantize_dequantize(x, axis, mx, np.float32)
        numerics.c.trn_quantize_dequantize(
            byref(numerics.matrix(x)), c_int(axis), byref(mx.c()), c_int(0), pointer(x),
            c_int64(600),
        )  # fmt: skip
        assert x.tobytes() == wanted.tobytes()
