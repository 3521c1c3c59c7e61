// Format conversions and random bits of one instruction set.
#pragma once

#include "simd-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

// Philox4x32-10 on `lanes` counters at once; word w of each counter in words[w].
TRN_INLINE void multiply_wide(u32v x, uint32_t factor, u32v& high, u32v& low) {
  low = x * factor;
#if TRN_ISA == 512
  const __m512i f = _mm512_set1_epi32(static_cast<int>(factor));
  const __m512i even = _mm512_mul_epu32((__m512i)x, f);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)x, 32), f);
  high = (u32v)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#elif TRN_ISA == 2
  const __m256i f = _mm256_set1_epi32(static_cast<int>(factor));
  const __m256i even = _mm256_mul_epu32((__m256i)x, f);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)x, 32), f);
  high = (u32v)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#else
  for (int i = 0; i < lanes; ++i) high[i] = static_cast<uint32_t>(uint64_t{x[i]} * factor >> 32);
#endif
}

TRN_INLINE void philox(uint64_t seed, uint64_t offset, uint64_t counter, u32v words[4]) {
  u32v step;
  for (int i = 0; i < lanes; ++i) step[i] = static_cast<uint32_t>(i);
  // Counters start at a multiple of `lanes`, so the low half does not carry.
  u32v c0 = step + static_cast<uint32_t>(counter), c1 = splat(static_cast<uint32_t>(counter >> 32));
  u32v c2 = splat(static_cast<uint32_t>(offset)), c3 = splat(static_cast<uint32_t>(offset >> 32));
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    u32v high0, low0, high1, low1;
    multiply_wide(c0, 0xD2511F53, high0, low0);
    multiply_wide(c2, 0xCD9E8D57, high1, low1);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// The words of the 64 elements of a group.
inline void random_group(uint64_t seed, uint64_t offset, uint64_t group, uint32_t* words) {
  for (int first = 0; first < 16; first += lanes) {
    u32v word[4];
    philox(seed, offset, group * 16 + static_cast<uint64_t>(first), word);
    for (int w = 0; w < 4; ++w) store(words + 16 * w + first, word[w]);
  }
}

__attribute__((noinline)) void random_words(uint64_t seed, uint64_t offset, uint64_t first,
                                            int64_t count, uint32_t* words) {
  int64_t done = 0;
  while (done < count) {
    const uint64_t index = first + static_cast<uint64_t>(done);
    const int64_t skip = static_cast<int64_t>(index % 64);
    if (skip == 0 && count - done >= 64) {
      random_group(seed, offset, index / 64, words + done);
      done += 64;
      continue;
    }
    uint32_t group[64];
    random_group(seed, offset, index / 64, group);
    const int64_t n = 64 - skip < count - done ? 64 - skip : count - done;
    copy_items(words + done, group + skip, n);
    done += n;
  }
}

// reference::encode and encode_stochastic on bits, for every format, without the sign.
struct EncodeConstants {
  uint32_t min_field;  // float32 exponent field of the smallest normal
  uint32_t mantissa_bits, max_code, over_code, nan_code;
};

inline EncodeConstants encode_constants(FloatFormat f, Overflow overflow) {
  EncodeConstants c;
  c.min_field = static_cast<uint32_t>(f.min_exponent() + 127);
  c.mantissa_bits = static_cast<uint32_t>(f.mantissa_bits);
  c.max_code = f.max_code();
  c.over_code = f.max_code();
  if (overflow == Overflow::special && !f.all_numbers())
    c.over_code = f.specials == Specials::ieee ? f.infinity_code() : f.nan_code();
  c.nan_code = f.nan_code();
  return c;
}

template <bool stochastic>
TRN_INLINE u32v encode_magnitude(EncodeConstants c, u32v magnitude, u32v random) {
  const u32v one = splat(1u);
  const u32v field = umax(magnitude >> 23, one);
  const u32v top = umax(field, splat(c.min_field));
  u32v significand =
      (magnitude & 0x7fffff) + select(magnitude > splat(0x7fffffu), splat(0x800000u), splat(0u));
  u32v dropped = top - field + (23 - c.mantissa_bits);
  const u32v beyond = umin(umax(dropped, splat(31u)) - 31, splat(31u));
  significand = significand >> beyond;
  dropped = umin(dropped, splat(31u));
  u32v kept;
  if (stochastic) {
    kept = (significand + (random >> (32 - dropped))) >> dropped;
  } else {
    const u32v odd = (significand >> dropped) & 1;
    kept = (significand + ((one << (dropped - 1)) - 1) + odd) >> dropped;
  }
  u32v code = ((top - c.min_field) << c.mantissa_bits) + kept;
  code = select(code > splat(c.max_code), splat(c.over_code), code);
  code = select(magnitude == splat(infinity_bits), splat(c.over_code), code);
  return select(magnitude > splat(infinity_bits), splat(c.nan_code), code);
}

// Magnitude codes to float32 magnitude bits.
TRN_INLINE u32v decode_magnitude(FloatFormat f, u32v code) {
  // Subnormal values are counted up from a normal number: to multiply subnormals takes long.
  const uint32_t first = static_cast<uint32_t>(128 - f.bias()) << 23;
  const u32v aligned = code << (23 - f.mantissa_bits);
  const u32v subnormal = (u32v)((f32v)(aligned + first) - (f32v)splat(first));
  const u32v normal = aligned + (first - (1u << 23));
  const u32v bits = select(code < splat(1u << f.mantissa_bits), subnormal, normal);
  if (f.all_numbers()) return bits;
  const u32v finite = select(code > splat(f.max_code()), splat(quiet_nan), bits);
  if (f.specials == Specials::fn) return finite;
  return select(code == splat(f.infinity_code()), splat(infinity_bits), finite);
}

// Calls body(first, live, x, random): `lanes` inputs as bits, of which `live` exist, and their
// random words where asked for.
template <bool stochastic, class S, class Body>
TRN_INLINE void for_vectors(const S* x, int64_t count, Rounding r, uint64_t index, Body body) {
  uint32_t words[64];
  for (int64_t base = 0; base < count; base += 64) {
    const int64_t n = count - base < 64 ? count - base : 64;
    if (stochastic) random_words(r.seed, r.offset, index + static_cast<uint64_t>(base), n, words);
    for (int64_t i = 0; i < n; i += lanes) {
      const int64_t live = n - i < lanes ? n - i : lanes;
      const u32v random = stochastic ? load<u32v>(words + i) : u32v{};
      if (live == lanes) {
        body(base + i, live, load_bits(x + base + i), random);
      } else {
        S padded[lanes] = {};
        copy_items(padded, x + base + i, live);
        body(base + i, live, load_bits(padded), random);
      }
    }
  }
}

template <class F>
TRN_INLINE void with_mode(RoundingMode mode, F f) {
  if (mode == RoundingMode::stochastic)
    f(std::true_type());
  else
    f(std::false_type());
}

inline void encode(FloatFormat f, const float* x, uint8_t* codes, int64_t count, Overflow overflow,
                   Rounding rounding, uint64_t index) {
  const EncodeConstants c = encode_constants(f, overflow);
  const int sign_shift = 32 - f.bits();
  const bool nan_has_sign = !f.all_numbers();
  with_mode(rounding.mode, [&](auto stochastic) {
    for_vectors<decltype(stochastic)::value>(
        x, count, rounding, index, [&](int64_t i, int64_t live, u32v bits, u32v random) {
          const u32v magnitude = bits & 0x7fffffff;
          u32v code = encode_magnitude<decltype(stochastic)::value>(c, magnitude, random);
          u32v sign = (bits & sign_mask) >> sign_shift;
          if (!nan_has_sign) sign = select(magnitude > splat(infinity_bits), splat(0u), sign);
          code |= sign;
          if (live == lanes) return narrow8(code, codes + i);
          uint8_t bytes[lanes];
          narrow8(code, bytes);
          copy_items(codes + i, bytes, live);
        });
  });
}

inline void decode(FloatFormat f, const uint8_t* codes, float* x, int64_t count) {
  const int sign_shift = 32 - f.bits();
  for (int64_t i = 0; i < count; i += lanes) {
    uint8_t bytes[lanes] = {};
    const int64_t live = count - i < lanes ? count - i : lanes;
    copy_items(bytes, codes + i, live);
    const u32v code = widen8(bytes);
    const u32v bits =
        decode_magnitude(f, code & f.magnitude_mask()) | ((code << sign_shift) & sign_mask);
    float values[lanes];
    store(values, bits);
    copy_items(x + i, values, live);
  }
}

inline void round_to(FloatFormat f, const float* x, float* y, int64_t count, Overflow overflow,
                     Rounding rounding, uint64_t index) {
  const EncodeConstants c = encode_constants(f, overflow);
  const bool nan_has_sign = !f.all_numbers();
  with_mode(rounding.mode, [&](auto stochastic) {
    for_vectors<decltype(stochastic)::value>(
        x, count, rounding, index, [&](int64_t i, int64_t live, u32v bits, u32v random) {
          const u32v magnitude = bits & 0x7fffffff;
          const u32v code = encode_magnitude<decltype(stochastic)::value>(c, magnitude, random);
          u32v sign = bits & sign_mask;
          if (!nan_has_sign) sign = select(magnitude > splat(infinity_bits), splat(0u), sign);
          const u32v value = decode_magnitude(f, code) | sign;
          if (live == lanes) return store(y + i, value);
          float values[lanes];
          store(values, value);
          copy_items(y + i, values, live);
        });
  });
}

template <bool stochastic>
TRN_INLINE void store_rounded(float* p, u32v bits, u32v) {
  store(p, bits);
}
template <bool stochastic>
TRN_INLINE void store_rounded(BFloat16* p, u32v bits, u32v random) {
  if (!stochastic) return store_nearest(p, bits);
  const u32v magnitude = bits & 0x7fffffff;
  const u32v rounded =
      select(magnitude < splat(infinity_bits), magnitude + (random >> 16),
             select(magnitude > splat(infinity_bits), splat(quiet_nan), magnitude));
  narrow16((rounded | (bits & sign_mask)) >> 16, reinterpret_cast<uint16_t*>(p));
}
template <bool stochastic>
TRN_INLINE void store_rounded(Half* p, u32v bits, u32v random) {
  if (!stochastic) return store_nearest(p, bits);
  const EncodeConstants c = {113, 10, 0x7bff, 0x7c00, 0x7e00};
  const u32v code = encode_magnitude<true>(c, bits & 0x7fffffff, random);
  narrow16(code | ((bits & sign_mask) >> 16), reinterpret_cast<uint16_t*>(p));
}

inline void convert(DType from, const void* x, DType to, void* y, int64_t count, Rounding rounding,
                    uint64_t index) {
  if (from == to) {
    __builtin_memmove(y, x, static_cast<size_t>(count) * size_of(to));
    return;
  }
  if (to == DType::float32) rounding.mode = RoundingMode::nearest_even;  // nothing to round
  with_type(from, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    with_type(to, [&](auto* d) {
      using D = std::remove_pointer_t<decltype(d)>;
      with_mode(rounding.mode, [&](auto stochastic) {
        constexpr bool st = decltype(stochastic)::value;
        D* out = static_cast<D*>(y);
        for_vectors<st>(static_cast<const S*>(x), count, rounding, index,
                        [&](int64_t i, int64_t live, u32v bits, u32v random) {
                          if (live == lanes) return store_rounded<st>(out + i, bits, random);
                          D values[lanes];
                          store_rounded<st>(values, bits, random);
                          copy_items(out + i, values, live);
                        });
      });
    });
  });
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
