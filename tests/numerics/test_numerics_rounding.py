"""Stochastic rounding: the generator, its layout, its mean, and that threads do not matter."""

import numpy as np
import pytest
from numerics_library import BITS, DTYPES, FORMATS, Numerics


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python integers."""
    mask = 0xFFFFFFFF
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & mask, (a >> 32) ^ counter[3] ^ key[1]]
        counter.append(a & mask)
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter


def test_known_answers() -> None:
    # From the test vectors published with the generator.
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert philox([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_words_belong_to_elements(each_isa: Numerics) -> None:
    seed, offset, first = 0x123456789ABCDEF0, (5 << 32) | 7, 2**36 - 100
    words = each_isa.random_words(seed, offset, first, 300)
    for i in (0, 1, 15, 16, 17, 63, 64, 99, 100, 101, 299):
        index = first + i
        counter = index // 64 * 16 + index % 16
        key = [seed & 0xFFFFFFFF, seed >> 32]
        state = [counter & 0xFFFFFFFF, counter >> 32, 7, 5]
        assert words[i] == philox(state, key)[index % 64 // 16]
    assert np.array_equal(words, each_isa.random_words(seed, offset, first, 300, reference=True))


@pytest.mark.parametrize("fmt", FORMATS)
def test_fast_equals_reference(each_isa: Numerics, fmt: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32)
    x[::3] = rng.standard_normal(x[::3].size) * np.exp2(rng.integers(-20, 20, x[::3].size))
    random = each_isa.random_words(3, 4, 0, x.size)
    codes = each_isa.reference_encode(fmt, x, special=True, random=random)
    wanted = each_isa.reference_decode(fmt, codes)
    got = each_isa.round_to(fmt, x, stochastic=True, seed=3, offset=4)
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))
    if fmt in ("bfloat16", "float16"):
        dtype = DTYPES[1 if fmt == "bfloat16" else 2]
        got = each_isa.convert(x, dtype, stochastic=True, seed=3, offset=4)
        nan = np.isnan(got.astype(np.float32))
        assert np.array_equal(got.view(np.uint16)[~nan], codes[~nan].astype(np.uint16))
        assert np.array_equal(nan, np.isnan(wanted))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
def test_the_mean_is_kept(numerics: Numerics, fmt: str, fraction: float) -> None:
    step = numerics.round_to(fmt, np.float32([1.5]))[0] - 1  # a multiple of the last place at 1
    last_place = 2.0 ** -BITS[fmt][1]
    assert step == 0.5
    x = np.full(100_000, 1 + fraction * last_place, np.float32)
    y = numerics.round_to(fmt, x, stochastic=True, seed=1)
    assert set(np.unique(y)) == {np.float32(1), np.float32(1 + last_place)}
    share = float(np.mean(y > 1))
    assert abs(share - fraction) < 5 * (fraction * (1 - fraction) / x.size) ** 0.5


def test_what_is_representable_stays(numerics: Numerics) -> None:
    x = np.arange(65536, dtype=np.uint16).view(DTYPES[1]).astype(np.float32)
    y = numerics.convert(x, DTYPES[1], stochastic=True, seed=9)
    nan = np.isnan(x)
    assert np.array_equal(y.view(np.uint16)[~nan], np.arange(65536, dtype=np.uint16)[~nan])
    assert np.isnan(y.astype(np.float32)[nan]).all()


def test_the_vendor_example(numerics: Numerics) -> None:
    """Adding 0.5 to float16 1024 2,048 times: to nearest never leaves 1024, stochastic does."""
    x = np.float16([1024])
    for i in range(2048):
        x = numerics.convert(x.astype(np.float32) + np.float32(0.5), x.dtype, stochastic=True,
                             seed=0, offset=i)  # fmt: skip
    assert abs(float(x[0]) - 2048) < 5 * (2048 * 0.25) ** 0.5


def test_threads_do_not_matter(numerics: Numerics) -> None:
    x = np.random.default_rng(0).standard_normal(300_001).astype(np.float32)
    numerics.threads(1)
    one = numerics.convert(x, DTYPES[1], stochastic=True, seed=5)
    numerics.threads(2)
    two = numerics.convert(x, DTYPES[1], stochastic=True, seed=5)
    assert np.array_equal(one.view(np.uint16), two.view(np.uint16))
    other = numerics.convert(x, DTYPES[1], stochastic=True, seed=5, offset=1)
    assert not np.array_equal(one.view(np.uint16), other.view(np.uint16))
