// MX elements and scales of one instruction set.
//
// Both directions rest on one identity. Let |v| < 2^(e + 1) with e >= the format's least exponent,
// and magic = 2^(e + 23 - mantissa_bits). Then the sum |v| + magic has its last place where the
// format has its own, so the adder rounds to nearest even, (sum - magic) is the rounded value, and
// bits(sum) - bits(magic) its significand n. The code is n + ((e - least exponent) <<
// mantissa_bits): a subnormal has field 0, and the leading bit of a normal n makes the field one
// more.
#pragma once

#include "convert-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

struct Encoded {
  u32v code;   // without sign, in the low 8 bits; the rest is of no use
  f32v value;  // without sign, in units of the scale
};

template <bool stochastic>
TRN_INLINE Encoded encode_scaled(const MxConstants& c, u32v magnitude, f32v inverse_scale,
                                 u32v random) {
  const u32v scaled = umin((u32v)((f32v)magnitude * inverse_scale), splat(c.max_bits));
  Encoded r;
  if constexpr (stochastic) {
    const uint32_t mantissa_bits = static_cast<uint32_t>(23 - c.mantissa_shift);
    const EncodeConstants e = {c.min_normal_bits >> 23, mantissa_bits, 0xff, 0xff, 0};
    r.code = encode_magnitude<true>(e, scaled, random);
    // n * 2^(exponent - mantissa_bits), by the identity above.
    const u32v field = umax(scaled >> 23, splat(c.min_normal_bits >> 23));
    const u32v n =
        r.code - ((field - (c.min_normal_bits >> 23)) << static_cast<int>(mantissa_bits));
    r.value = __builtin_convertvector((i32v)n, f32v) * (f32v)((field - mantissa_bits) << 23);
  } else {
    const u32v exponent = umax(scaled & infinity_bits, splat(c.min_normal_bits));
    const u32v magic = exponent + (static_cast<uint32_t>(c.mantissa_shift) << 23);
    const f32v sum = (f32v)scaled + (f32v)magic;
    // The low byte of magic is 0, so n is that of the sum.
    const uint32_t least = c.min_normal_bits >> c.mantissa_shift;
    r.code = (u32v)sum + ((exponent >> c.mantissa_shift) - least);
    r.value = sum - (f32v)magic;
  }
  return r;
}

// Rounds finite numbers to bfloat16. What becomes of NaN does not matter: its block is NaN anyway.
template <bool through_bf16>
TRN_INLINE u32v finite_through_bf16(u32v bits) {
  if constexpr (!through_bf16) return bits;
  return (bits + (0x7fff + ((bits >> 16) & 1))) & 0xffff0000;
}

// The largest magnitude of a block, rounded: rounding keeps the order. NaN stays at or above
// infinity_bits.
template <bool through_bf16, class U>
TRN_INLINE U top_through_bf16(U top) {
  if constexpr (!through_bf16) return top;
  return (top + (0x7fff + ((top >> 16) & 1))) & 0xffff0000;
}

TRN_INLINE u32v scale_code(const MxConstants& c, u32v top) {
  const u32v bits = (u32v)((f32v)top * splat(c.scale_factor));
  const i32v code = (i32v)((bits + c.scale_round) >> 23) - c.scale_subtract;
  // Below 2^-126 there is no exponent to read: up to 2^-127 the code is 0, or from there on 1.
  const u32v none = splat(c.scale_subtract < 0 ? 0x3fffffu : 0x400000u);
  const u32v clamped = select(code < 0 || bits <= none, splat(0u), umin((u32v)code, splat(254u)));
  return select(top >= splat(infinity_bits), splat(255u), clamped);
}

// 2^(127 - code), for code 254 a subnormal; of a NaN block anything finite.
TRN_INLINE u32v inverse_scale_bits(u32v code) {
  return select(code >= splat(254u), splat(0x400000u), (254 - code) << 23);
}
TRN_INLINE u32v scale_bits(u32v code) {
  return select(code == splat(0u), splat(0x400000u),
                select(code == splat(255u), splat(quiet_nan), code << 23));
}

TRN_INLINE uint32_t least_of(u32v v) { return ~largest(~v); }

// A block below this scale may hold float32 subnormals once dequantised (2^-16 is the least step).
constexpr uint32_t least_safe_scale = 24;

// The low 8 bits of 32 lanes.
TRN_INLINE void narrow_block(const u32v* codes, uint8_t* p) {
#if TRN_ISA == 2
  const auto byte = [&](int v) { return (__m256i)(codes[v] & 0xff); };
  const __m256i low = _mm256_packus_epi32(byte(0), byte(1));
  const __m256i high = _mm256_packus_epi32(byte(2), byte(3));
  const __m256i mixed = _mm256_packus_epi16(low, high);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(mixed, order));
#else
  for (int v = 0; v < 32 / lanes; ++v) narrow8(codes[v], p + v * lanes);
#endif
}

// 32 codes to 16 bytes, the first of a pair in the low nibble.
TRN_INLINE void pack_nibbles(const u32v* codes, uint8_t* p) {
  uint8_t bytes[32];
  narrow_block(codes, bytes);
#if TRN_ISA >= 2
  const __m256i pairs = _mm256_maddubs_epi16(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)), _mm256_set1_epi16(0x1001));
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
#else
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(bytes[2 * i] | bytes[2 * i + 1] << 4);
#endif
}

// The largest magnitude of 32 contiguous elements, as float32 bits.
template <class S>
TRN_INLINE uint32_t block_top(const S* x) {
  u32v top = splat(0u);
  for (int v = 0; v < 32 / lanes; ++v) top = umax(top, load_bits(x + v * lanes) & 0x7fffffff);
  return largest(top);
}
#if TRN_ISA >= 2
TRN_INLINE uint32_t block_top(const BFloat16* x) {
  const __m256i* from = reinterpret_cast<const __m256i*>(x);
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  const __m256i top = _mm256_max_epu16(_mm256_and_si256(_mm256_loadu_si256(from), magnitude),
                                       _mm256_and_si256(_mm256_loadu_si256(from + 1), magnitude));
  const __m128i half = _mm_max_epu16(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
  return ~static_cast<uint32_t>(_mm_cvtsi128_si32(least)) << 16;
}
#endif

// Scale codes of `lanes` blocks, and what multiplies and what their elements count.
struct Scales {
  alignas(64) uint32_t code[lanes];
  alignas(64) float inverse[lanes], scale[lanes];
};

// Takes the blocks' largest magnitudes. Lowers `least` to the least code, but for blocks of zeros.
template <bool through_bf16>
TRN_INLINE Scales block_scales(const MxConstants& c, const uint32_t* tops, u32v& least) {
  const u32v top = top_through_bf16<through_bf16>(load<u32v>(tops));
  const u32v code = scale_code(c, top);
  least = umin(least, select(top == splat(0u), splat(255u), code));
  Scales s;
  store(s.code, code);
  store(s.inverse, inverse_scale_bits(code));
  store(s.scale, scale_bits(code));
  return s;
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
