"""Device functions on float32 bits: rounding, MX scales and elements, random words.

They give the bits of csrc/numerics (mx.inc, convert.inc): integers do the work, and the one float
sum in `encode_nearest` is exact by construction. Needs IEEE arithmetic without flushing, which is
Triton's default.
"""

import triton
import triton.language as tl

__all__ = [
    "bf16_bits",
    "byte_index",
    "decode",
    "encode_nearest",
    "encode_stochastic",
    "float_bits",
    "group_index",
    "in_units_of",
    "mx_value",
    "random_word",
    "random_words",
    "round_stochastic",
    "scale_code",
    "scale_value",
    "store_rounded",
    "through_bf16",
    "tile_and_batch",
]

INFINITY = tl.constexpr(0x7F800000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
SIGN = tl.constexpr(0x80000000)
QUIET_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def tile_and_batch(tiles):
    """Which of `tiles` this program works on, and in which member of the batch, int64.

    All programs lie on the first axis of the grid: the others end at 65535.
    """
    return tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)


@triton.jit
def float_bits(value):
    """float32 bits of a loaded value: int16 holds bfloat16, float16 is widened."""
    if value.dtype == tl.int16:
        return value.to(tl.uint32) << 16
    else:
        return value.to(tl.float32).to(tl.uint32, bitcast=True)


@triton.jit
def through_bf16(bits):
    """Finite bits rounded to bfloat16, infinity stays; NaN stays at or above infinity."""
    return (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000


@triton.jit
def bf16_bits(bits):
    """float32 bits to the int16 of the nearest bfloat16; a NaN becomes quiet and keeps its sign."""
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16 & 0x8000) | 0x7FC0
    return tl.where((bits & MAGNITUDE) > INFINITY, quiet, rounded).to(tl.int16)


@triton.jit
def store_rounded(pointers, bits, mask):
    """Stores float32 bits as the pointers' dtype, rounded to nearest even; int16 is bfloat16."""
    if pointers.dtype.element_ty == tl.int16:
        tl.store(pointers, bf16_bits(bits), mask=mask)
    else:
        value = bits.to(tl.float32, bitcast=True)
        tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def group_index(group, member, WRAPPED: tl.constexpr):
    """Index along the axis of a member (0..31) of a group."""
    if WRAPPED:
        return group // 16 * 512 + group % 16 * 8 + member // 8 * 128 + member % 8
    else:
        return group * 32 + member


@triton.jit
def byte_index(group, member, WRAPPED: tl.constexpr):
    """Index along the axis of a byte (0..15) of a group of 4-bit codes: `group_index` halved.

    Without a division of what is contiguous, so that bytes are stored several at once.
    """
    if WRAPPED:
        return group // 16 * 256 + group % 16 * 4 + member // 4 * 64 + member % 4
    else:
        return group * 16 + member


@triton.jit
def scale_code(top, FACTOR: tl.constexpr, ROUND: tl.constexpr, SUBTRACT: tl.constexpr):
    """E8M0 code of blocks whose largest magnitude has the bits `top`."""
    bits = top
    if FACTOR != 1.0:
        bits = (top.to(tl.float32, bitcast=True) * FACTOR).to(tl.uint32, bitcast=True)
    code = ((bits + ROUND) >> 23).to(tl.int32) - SUBTRACT
    code = tl.where((code < 0) | (bits <= 0x400000), 0, code)
    return tl.where(top >= INFINITY, 255, code).to(tl.uint32)


@triton.jit
def inverse_scale(code):
    """2^(127 - code) as float32; anything finite for the code of NaN."""
    return ((254 - tl.minimum(code, 253)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def in_units_of(scale, magnitude, MAX_BITS: tl.constexpr):
    """float32 bits of |x| divided by its block's scale, no larger than the element's largest."""
    scaled = magnitude.to(tl.float32, bitcast=True) * inverse_scale(scale)
    return tl.minimum(scaled.to(tl.uint32, bitcast=True), MAX_BITS)


@triton.jit
def scale_value(code):
    """2^(code - 127) as float32; code 0 is subnormal, 255 NaN."""
    bits = tl.where(code == 0, 0x400000, tl.where(code == 255, QUIET_NAN, code << 23))
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def encode_nearest(scaled, M: tl.constexpr, MIN_FIELD: tl.constexpr):
    """Code and value, without sign, of finite magnitude bits that do not exceed the largest.

    magic = 2^(e + 23 - M) has its last place where the format has its own, so the adder rounds to
    nearest even: the sum's low byte is the significand, sum - magic the rounded value.
    """
    exponent = tl.maximum(scaled & INFINITY, MIN_FIELD << 23)
    magic = exponent + ((23 - M) << 23)
    total = scaled.to(tl.float32, bitcast=True) + magic.to(tl.float32, bitcast=True)
    low = total.to(tl.uint32, bitcast=True) & 0xFF
    code = low + (exponent >> (23 - M)) - (MIN_FIELD << M)
    return code, total - magic.to(tl.float32, bitcast=True)


@triton.jit
def round_stochastic(magnitude, random, M: tl.constexpr, MIN_FIELD: tl.constexpr):
    """Code of finite magnitude bits, rounded up with the probability that keeps the mean."""
    field = tl.maximum(magnitude >> 23, 1)
    top = tl.maximum(field, MIN_FIELD)
    hidden = tl.where(magnitude > 0x7FFFFF, 0x800000, 0).to(tl.uint32)
    significand = (magnitude & 0x7FFFFF) + hidden
    dropped = top - field + (23 - M)
    significand = significand >> tl.minimum(tl.maximum(dropped, 31) - 31, 31)
    dropped = tl.minimum(dropped, 31)
    kept = (significand + (random >> (32 - dropped))) >> dropped
    return ((top - MIN_FIELD) << M) + kept


@triton.jit
def encode_stochastic(scaled, random, M: tl.constexpr, MIN_FIELD: tl.constexpr):
    """As `encode_nearest`, with uniform random words."""
    code = round_stochastic(scaled, random, M, MIN_FIELD)
    field = tl.maximum(scaled >> 23, MIN_FIELD)
    count = code - ((field - MIN_FIELD) << M)
    unit = ((field - M) << 23).to(tl.float32, bitcast=True)
    return code, count.to(tl.int32).to(tl.float32) * unit


@triton.jit
def decode(code, M: tl.constexpr, BIAS: tl.constexpr, NAN: tl.constexpr, INF: tl.constexpr):
    """float32 magnitude of codes without sign. INF is 256 where the format has none, NAN 0."""
    field = code >> M
    count = (code & ((1 << M) - 1)) + (tl.where(field > 0, 1 << M, 0)).to(tl.uint32)
    unit = ((tl.maximum(field, 1) + (127 - BIAS - M)) << 23).to(tl.float32, bitcast=True)
    bits = (count.to(tl.int32).to(tl.float32) * unit).to(tl.uint32, bitcast=True)
    if INF < 256:
        bits = tl.where(code == INF, INFINITY, tl.where(code > INF, QUIET_NAN, bits))
    elif NAN > 0:
        bits = tl.where(code == NAN, QUIET_NAN, bits)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def mx_value(
    bits,
    AXIS: tl.constexpr,
    M: tl.constexpr,
    MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr,
    FACTOR: tl.constexpr,
    ROUND: tl.constexpr,
    SUBTRACT: tl.constexpr,
):
    """float32 bits quantised in blocks along AXIS and decoded again, as float32 bits."""
    magnitude = bits & MAGNITUDE
    code = scale_code(tl.max(magnitude, AXIS, keep_dims=True), FACTOR, ROUND, SUBTRACT)
    _, value = encode_nearest(in_units_of(code, magnitude, MAX_BITS), M, MIN_FIELD)
    value = (value * scale_value(code)).to(tl.uint32, bitcast=True)
    return tl.where(code == 255, QUIET_NAN, value | (bits & SIGN)).to(tl.uint32)


@triton.jit
def random_words(seed, offset, counter):
    """The four words of Philox4x32-10 for a counter; seed and offset int64, counter int64 >= 0."""
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    c2 = (low * 0) + (offset & 0xFFFFFFFF).to(tl.uint32)
    c3 = (low * 0) + ((offset >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(seed, low, high, c2, c3)


@triton.jit
def random_word(seed, offset, index):
    """The random word of an element, as rounding.cpp numbers them: 64 elements to 16 counters.

    seed and offset are int64, index is an int64 tensor that is not negative.
    """
    word = (index % 64 // 16).to(tl.int32)
    w0, w1, w2, w3 = random_words(seed, offset, index // 64 * 16 + index % 16)
    return tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
