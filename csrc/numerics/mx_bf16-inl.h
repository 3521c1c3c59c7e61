// bfloat16 to MX codes of 8 bits, rounding to nearest even: two elements in each 32-bit lane, which
// takes half the work.
#pragma once

#include "mx_encode-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

// With magic as in mx_encode-inl.h, the upper half of bits(sum) is its exponent field << 7, the
// lower half its significand. So lower * 256 + upper * (2 << mantissa_bits), one instruction, has
// in its second byte significand + (field << mantissa_bits): the code, if a constant in magic takes
// off what the field has too much. The constant is even, so ties stay with the even code.
struct WordConstants {
  u32v min_normal_bits, magic, factors, max_codes;
  u32v low_half, high_half, infinity, sign, signs;
};

TRN_INLINE WordConstants word_constants(const MxConstants& c) {
  const uint32_t shift = static_cast<uint32_t>(c.mantissa_shift), mantissa_bits = 23 - shift;
  const uint32_t least = c.min_normal_bits >> shift;
  const uint32_t surplus = least + (shift << mantissa_bits);
  const uint32_t max_code = (c.max_bits >> shift) - least + (1u << mantissa_bits);
  return {.min_normal_bits = in_register(c.min_normal_bits),
          .magic = in_register((shift << 23) + (-surplus & 0xff)),
          .factors = in_register((2u << mantissa_bits) << 16 | 256),
          .max_codes = in_register(max_code * 0x01000100),
          .low_half = in_register(0xffff),
          .high_half = in_register(0xffff0000),
          .infinity = in_register(infinity_bits),
          .sign = in_register(sign_mask),
          .signs = in_register(0x80008000)};
}

#if TRN_ISA == 512
TRN_INLINE u32v multiply_add16(u32v a, u32v b) {
  return (u32v)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
TRN_INLINE u32v umin16(u32v a, u32v b) { return (u32v)_mm512_min_epu16((__m512i)a, (__m512i)b); }
TRN_INLINE u32v umax16(u32v a, u32v b) { return (u32v)_mm512_max_epu16((__m512i)a, (__m512i)b); }
TRN_INLINE void store_high_bytes(u32v words, uint8_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi16_epi8(_mm512_srli_epi16((__m512i)words, 8)));
}
#elif TRN_ISA == 2
TRN_INLINE u32v multiply_add16(u32v a, u32v b) {
  return (u32v)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
TRN_INLINE u32v umin16(u32v a, u32v b) { return (u32v)_mm256_min_epu16((__m256i)a, (__m256i)b); }
TRN_INLINE u32v umax16(u32v a, u32v b) { return (u32v)_mm256_max_epu16((__m256i)a, (__m256i)b); }
TRN_INLINE void store_high_bytes(u32v words, uint8_t* p) {
  const __m256i bytes = _mm256_srli_epi16((__m256i)words, 8);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(bytes, bytes), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
#else
typedef uint16_t words16 __attribute__((vector_size(4 * TRN_LANES)));
TRN_INLINE u32v multiply_add16(u32v a, u32v b) {
  const auto product = [&](int shift) {
    const i32v high = (i32v)(a << (16 - shift)) >> 16, other = (i32v)(b << (16 - shift)) >> 16;
    return (u32v)(high * other);
  };
  return product(0) + product(16);
}
TRN_INLINE u32v umin16(u32v a, u32v b) {
  return (u32v)((words16)a < (words16)b ? (words16)a : (words16)b);
}
TRN_INLINE u32v umax16(u32v a, u32v b) {
  return (u32v)((words16)a > (words16)b ? (words16)a : (words16)b);
}
TRN_INLINE void store_high_bytes(u32v words, uint8_t* p) {
  for (int i = 0; i < lanes; ++i) {
    p[2 * i] = static_cast<uint8_t>(words[i] >> 8);
    p[2 * i + 1] = static_cast<uint8_t>(words[i] >> 24);
  }
}
#endif

TRN_INLINE u32v code_in_second_byte(const WordConstants& w, u32v bits, f32v inverse) {
  const f32v scaled = (f32v)bits * inverse;
  const u32v exponent = umax((u32v)scaled & w.infinity, w.min_normal_bits);
  const u32v magic = (exponent + w.magic) | ((u32v)scaled & w.sign);
  return multiply_add16((u32v)(scaled + (f32v)magic), w.factors);
}

// 2 * lanes elements to codes with signs, in the high bytes of 16-bit words.
TRN_INLINE u32v encode_words(const WordConstants& w, u32v x, f32v even_inverse, f32v odd_inverse) {
  const u32v even = code_in_second_byte(w, x << 16, even_inverse);
  const u32v odd = code_in_second_byte(w, x & w.high_half, odd_inverse);
  const u32v codes = umin16((even & w.low_half) | (odd << 16), w.max_codes);
  return codes | (x & w.signs);
}

TRN_INLINE void mx_block_words(const MxConstants& c, const WordConstants& w, const BFloat16* x,
                               const Scales& s, int at, uint8_t* y) {
  const f32v inverse = splat(s.inverse[at]);
  for (int v = 0; v < 32; v += 2 * lanes) {
    const u32v words = encode_words(w, load<u32v>(x + v), inverse, inverse);
    store_high_bytes(s.code[at] == 255 ? splat(c.nan_code * 0x01000100) : words, y + v);
  }
}

// NaN codes for the columns whose scale code, in the high byte of its word, is 255.
TRN_INLINE u32v with_nan(u32v words, u32v scale_codes, uint32_t nan_code) {
  const u32v low = select((scale_codes & 0xff00) == splat(0xff00u), splat(0xffffu), splat(0u));
  const u32v high = select(scale_codes >> 24 == splat(255u), splat(0xffff0000u), splat(0u));
  return (words & ~(low | high)) | ((low | high) & (nan_code * 0x01000100));
}

// One block down each of the first `width` columns, a multiple of 2 * lanes. Row i of the block is
// at rows[i] (null: padding) and its codes go to codes[i].
TRN_INLINE void mx_columns_words(const MxConstants& c, const BFloat16* const* rows, int64_t width,
                                 uint8_t* const* codes, uint8_t* scales, u32v& least) {
  constexpr int64_t step = 2 * lanes, strip = 2048;
  constexpr int ahead = 4;  // rows to fetch before their turn
  const WordConstants w = word_constants(c);
  alignas(64) uint32_t top[strip / 2], scale_codes[strip / 2];
  alignas(64) float even_inverse[strip / 2], odd_inverse[strip / 2];
  for (int64_t base = 0; base < width; base += strip) {
    const int64_t here = width - base < strip ? width - base : strip;
    for (int64_t j = 0; j < here / 2; j += lanes) store(top + j, splat(0u));
    for (int i = 0; i < 32; ++i) {
      if (rows[i] == nullptr) continue;
      const BFloat16* row = rows[i] + base;
      const BFloat16* later = rows[(i + ahead) % 32];
      const BFloat16* next = later == nullptr ? row : later + base;
      for (int64_t j = 0; j < here; j += step) {
        prefetch(next + j);
        const u32v magnitudes = load<u32v>(row + j) & 0x7fff7fff;
        store(top + j / 2, umax16(load<u32v>(top + j / 2), magnitudes));
      }
    }
    i32v nan = {};
    for (int64_t j = 0; j < here; j += step) {
      const u32v tops = load<u32v>(top + j / 2);
      const auto code_of = [&](u32v bits) {
        const u32v code = scale_code(c, bits);
        least = umin(least, select(bits == splat(0u), splat(255u), code));
        nan |= code == splat(255u);
        return code;
      };
      const u32v even = code_of(tops << 16), odd = code_of(tops & 0xffff0000);
      store(even_inverse + j / 2, inverse_scale_bits(even));
      store(odd_inverse + j / 2, inverse_scale_bits(odd));
      store(scale_codes + j / 2, even << 8 | odd << 24);
      if (scales != nullptr) store_high_bytes(even << 8 | odd << 24, scales + base + j);
    }
    const bool any_nan = largest((u32v)nan) != 0;
    for (int i = 0; i < 32; ++i) {
      if (rows[i] == nullptr) continue;
      for (int64_t j = 0; j < here; j += step) {
        u32v words =
            encode_words(w, load<u32v>(rows[i] + base + j), load<f32v>(even_inverse + j / 2),
                         load<f32v>(odd_inverse + j / 2));
        if (any_nan) [[unlikely]]
          words = with_nan(words, load<u32v>(scale_codes + j / 2), c.nan_code);
        store_high_bytes(words, codes[i] + base + j);
      }
    }
  }
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
