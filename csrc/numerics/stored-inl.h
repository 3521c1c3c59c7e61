// Columns that are stored in MX to float32, a block of 32 elements at a time, and their products
// with a few rows. with_decoder picks the struct that reads a format.
//
// A float of at most 8 bits is a float16 but for the width and the bias of its exponent: its code,
// moved to where float16 has sign, exponent and mantissa, is its value times 2^-rebias, subnormals
// included. The factor of the block has the power that is missing. Factors and products are exact.
#pragma once

#include "gemm-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

// Beyond it, 2^(scale + rebias) is no float32.
constexpr uint32_t largest_scale(int rebias) {
  return static_cast<uint32_t>(254 - (rebias > 0 ? rebias : 0));
}

TRN_INLINE u32v scale_codes(const uint8_t* scales, int64_t live) {
  if (live >= lanes) return widen8(scales);
#if TRN_ISA == 512
  const __mmask16 present = static_cast<__mmask16>((1u << live) - 1);
  return (u32v)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(present, scales));
#else
  uint8_t codes[lanes] = {};
  copy_items(codes, scales, live);
  return widen8(codes);
#endif
}

// Any code by any scale.
inline void mx_widen(FloatFormat f, const uint8_t* codes, const uint8_t* scales, int64_t blocks,
                     float* y) {
  const bool two_a_byte = f.bits() == 4;
  const int sign_shift = 32 - f.bits();
  float factors[piece_blocks];
  for (int64_t i = 0; i < blocks; i += lanes)
    store(factors + i, scale_bits(scale_codes(scales + i, blocks - i)));
  for (int64_t block = 0; block < blocks; ++block, codes += two_a_byte ? 16 : 32, y += 32)
    for (int i = 0; i < 32; i += lanes) {
      const u32v code = two_a_byte ? widen4(codes + i / 2) : widen8(codes + i);
      f32v value;
      if (f.specials == Specials::integer)
        value = __builtin_convertvector((i32v)(code << 24) >> 24, f32v) *
                splat(1.0f / static_cast<float>(1 << f.mantissa_bits));
      else
        value = (f32v)(decode_magnitude(f, code & f.magnitude_mask()) |
                       ((code << sign_shift) & sign_mask));
      store(y + i, value * splat(factors[block]));
    }
}

#if TRN_ISA >= 2

typedef int16_t i16v __attribute__((vector_size(4 * TRN_LANES)));

template <bool with_sign>
TRN_INLINE i16v bytes_to_words(const uint8_t* p) {
#if TRN_ISA == 512
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (i16v)(with_sign ? _mm512_cvtepi8_epi16(bytes) : _mm512_cvtepu8_epi16(bytes));
#else
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (i16v)(with_sign ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes));
#endif
}
TRN_INLINE f32v low_halves(i16v words) {
#if TRN_ISA == 512
  return (f32v)_mm512_cvtph_ps(_mm512_castsi512_si256((__m512i)words));
#else
  return (f32v)_mm256_cvtph_ps(_mm256_castsi256_si128((__m256i)words));
#endif
}
TRN_INLINE f32v high_halves(i16v words) {
#if TRN_ISA == 512
  return (f32v)_mm512_cvtph_ps(_mm512_extracti64x4_epi64((__m512i)words, 1));
#else
  return (f32v)_mm256_cvtph_ps(_mm256_extracti128_si256((__m256i)words, 1));
#endif
}

// Whether no code of `count`, a multiple of 32, is infinity or NaN.
inline bool are_numbers(FloatFormat f, const uint8_t* codes, int64_t count) {
  if (f.all_numbers()) return true;
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(f.magnitude_mask()));
  const __m256i limit = _mm256_set1_epi8(static_cast<char>(f.max_code()));
  __m256i most = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
    most = _mm256_max_epu8(most, _mm256_and_si256(bytes, mask));
  }
  return _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(most, limit), limit)) == -1;
}

// Each reader has `rebias` and `block`, which puts 32 values, in their order, into values.

template <int exponent_bits, int mantissa_bits>
struct HalfReader {
  static constexpr int rebias = 15 - ((1 << (exponent_bits - 1)) - 1);
  static constexpr int bits = 1 + exponent_bits + mantissa_bits;
  static constexpr int magnitude = ((1 << (bits - 1)) - 1) << (10 - mantissa_bits);

  explicit HalfReader(FloatFormat) {}

  TRN_INLINE void block(const uint8_t* codes, f32v factor, f32v* values) const {
    for (int i = 0; i < dot_chains; i += 2) {
      i16v words = bytes_to_words<bits == 8>(codes + i * lanes);
      if constexpr (bits == 8)
        words = words << (10 - mantissa_bits);
      else
        words = words << (16 - bits) >> (5 - exponent_bits);
      words &= static_cast<int16_t>(magnitude | 0x8000);
      values[i] = low_halves(words) * factor;
      values[i + 1] = high_halves(words) * factor;
    }
  }
};

// Two a byte, by a table of their 16 values. It holds a thousandth of them, so that the factor of a
// block of zeros is not subnormal: to multiply by those takes long.
struct NibbleReader {
  static constexpr int rebias = 10;
  f32v table;

  explicit NibbleReader(FloatFormat f) {
    u32v code{};
    for (int i = 0; i < lanes; ++i) code[i] = static_cast<uint32_t>(i);
    const u32v sign = (code << 28) & sign_mask;
    table = (f32v)(decode_magnitude(f, code & f.magnitude_mask()) | sign) * splat(0x1p-10f);
  }

  TRN_INLINE void block(const uint8_t* codes, f32v factor, f32v* values) const {
    const f32v scaled = table * factor;
#if TRN_ISA == 512
    const __m512i bytes =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const __m512i low = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i shifts =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    for (int i = 0; i < 2; ++i) {
      const __m512i words =
          _mm512_permutexvar_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(2 * i)), bytes);
      values[i] = (f32v)_mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), (__m512)scaled);
    }
#else
    const __m256i shifts = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i sign = _mm256_set1_epi32(static_cast<int>(sign_mask));
    for (int i = 0; i < 4; ++i) {
      const __m256i top = _mm256_sllv_epi32(_mm256_set1_epi32(load<int>(codes + 4 * i)), shifts);
      const __m256 magnitude = _mm256_permutevar8x32_ps((__m256)scaled, _mm256_srli_epi32(top, 28));
      values[i] = (f32v)_mm256_or_si256((__m256i)magnitude, _mm256_and_si256(top, sign));
    }
#endif
  }
};

struct IntegerReader {
  static constexpr int rebias = -6;  // the unit of MXINT8 is 2^-6

  explicit IntegerReader(FloatFormat) {}

  TRN_INLINE void block(const uint8_t* codes, f32v factor, f32v* values) const {
    for (int i = 0; i < dot_chains; ++i) {
      const i32v word = (i32v)(widen8(codes + i * lanes) << 24) >> 24;
      values[i] = __builtin_convertvector(word, f32v) * factor;
    }
  }
};

template <class F>
TRN_INLINE bool with_reader(FloatFormat f, F run) {
  if (f.specials == Specials::integer) return f.mantissa_bits == 6 && run(IntegerReader(f));
  switch (f.exponent_bits * 10 + f.mantissa_bits) {
    case 43:
      return run(HalfReader<4, 3>(f));
    case 52:
      return run(HalfReader<5, 2>(f));
    case 32:
      return run(HalfReader<3, 2>(f));
    case 23:
      return run(HalfReader<2, 3>(f));
    case 21:
      return run(NibbleReader(f));
  }
  return false;
}

// 2^(scale + rebias); false where that is no float32.
template <int rebias>
TRN_INLINE bool block_factors(const uint8_t* scales, int64_t blocks, float* factors) {
  u32v most = splat(0u);
  for (int64_t i = 0; i < blocks; i += lanes) {
    const u32v code = scale_codes(scales + i, blocks - i);
    most = umax(most, code);
    const u32v field = code + static_cast<uint32_t>(rebias);
    u32v bits = field << 23;
    if constexpr (rebias <= 0)
      bits = select((i32v)field > 0, bits, splat(0x400000u) >> umin(-field, splat(31u)));
    store(factors + i, bits);
  }
  return largest(most) <= largest_scale(rebias);
}

// Up to 16 columns as [32 * blocks, 16] of a panel; those that are missing are zero.
template <class Reader>
bool widen_strip(const Reader& reader, const StoredMx& b, int64_t columns, int64_t blocks,
                 uint32_t* panel) {
  constexpr int64_t line = 32 + 16;  // a power of two would share cache sets
  const FloatFormat f = element_format(b.element);
  const int64_t bytes = f.bits() == 4 ? 16 : 32;
  alignas(64) float factors[stored_columns][piece_blocks];
  for (int64_t j = 0; j < columns; ++j)
    if (!are_numbers(f, b.codes + j * b.column_bytes, blocks * bytes) ||
        !block_factors<Reader::rebias>(b.scales + j * b.column_scales, blocks, factors[j]))
      return false;
  alignas(64) float values[stored_columns * line] = {};
  for (int64_t i = 0; i < blocks; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      f32v block[dot_chains];
      reader.block(b.codes + j * b.column_bytes + i * bytes, splat(factors[j][i]), block);
      for (int v = 0; v < dot_chains; ++v) store(values + j * line + v * lanes, block[v]);
    }
    transpose(reinterpret_cast<const uint32_t*>(values), line, stored_columns, 32,
              panel + i * 32 * panel_columns, panel_columns);
  }
  return true;
}

inline bool stored_panel(const StoredMx& b, int64_t columns, int64_t blocks, uint32_t* panel) {
  static_assert(panel_columns % stored_columns == 0);
  return with_reader(element_format(b.element), [&](const auto& reader) {
    for (int64_t j = 0; j < panel_columns; j += stored_columns) {
      const int64_t left = columns > j ? columns - j : 0;
      const StoredMx strip{b.codes + j * b.column_bytes, b.column_bytes,
                           b.scales + j * b.column_scales, b.column_scales, b.element};
      if (!widen_strip(reader, strip, left < stored_columns ? left : stored_columns, blocks,
                       panel + j))
        return false;
    }
    return true;
  });
}

// What `dots` adds up at the end, of one column: 16 sums for each row.
template <int rows, class Reader>
TRN_INLINE void dots_of_piece(const Reader& reader, const uint8_t* codes, int64_t bytes,
                              const float* factors, int64_t blocks, const float* a, int64_t lda,
                              float* halves, int64_t stride) {
  f32v sum[rows][dot_chains] = {};
  for (int64_t i = 0; i < blocks; ++i, codes += bytes, a += 32) {
    f32v values[dot_chains];
    reader.block(codes, splat(factors[i]), values);
#pragma GCC unroll 4
    for (int v = 0; v < dot_chains; ++v)
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
        sum[r][v] = multiply_add(load<f32v>(a + r * lda + v * lanes), values[v], sum[r][v]);
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < dot_chains / 2; ++v)
      store(halves + r * stride + v * lanes, sum[r][v] + sum[r][v + dot_chains / 2]);
}

template <int rows, class Reader>
bool stored_dots_of(const Reader& reader, const StoredMx& b, int64_t columns, int64_t blocks,
                    const float* a, int64_t lda, float* sums) {
  static_assert(stored_columns == 16);
  constexpr int64_t most_pieces = 4, most_blocks = most_pieces * piece_blocks;
  const FloatFormat f = element_format(b.element);
  const int64_t bytes = f.bits() == 4 ? 16 : 32;
  alignas(64) float halves[most_pieces][rows][16][16] = {};
  for (int64_t first = 0; first < blocks; first += most_blocks) {
    const int64_t end = blocks - first < most_blocks ? blocks : first + most_blocks;
    for (int64_t j = 0; j < columns; ++j) {
      const uint8_t* codes = b.codes + j * b.column_bytes + first * bytes;
      const uint8_t* scales = b.scales + j * b.column_scales + first;
      if (!are_numbers(f, codes, (end - first) * bytes)) return false;
      for (int64_t at = 0; at < end - first; at += piece_blocks) {
        const int64_t count = end - first - at < piece_blocks ? end - first - at : piece_blocks;
        alignas(64) float factors[piece_blocks];
        if (!block_factors<Reader::rebias>(scales + at, count, factors)) return false;
        dots_of_piece<rows>(reader, codes + at * bytes, bytes, factors, count,
                            a + (first + at) * 32, lda, halves[at / piece_blocks][0][j], 16 * 16);
      }
    }
    for (int64_t at = 0; at < end - first; at += piece_blocks)
      for (int r = 0; r < rows; ++r)
        add_in_order(halves[at / piece_blocks][r][0], stored_columns, sums + r * stored_columns);
  }
  return true;
}

template <int most, class Reader>
bool stored_dots_of_rows(const Reader& reader, const StoredMx& b, int64_t columns, int64_t blocks,
                         int64_t rows, const float* a, int64_t lda, float* sums) {
  if constexpr (most > 0) {
    if (rows < most)
      return stored_dots_of_rows<most - 1>(reader, b, columns, blocks, rows, a, lda, sums);
    return stored_dots_of<most>(reader, b, columns, blocks, a, lda, sums) &&
           stored_dots_of_rows<most>(reader, b, columns, blocks, rows - most, a + most * lda, lda,
                                     sums + most * stored_columns);
  }
  return true;
}

inline bool stored_dots(const StoredMx& b, int64_t columns, int64_t blocks, int64_t rows,
                        const float* a, int64_t lda, float* sums) {
  constexpr int at_once = lanes == 16 ? 4 : 2;  // more sums would leave the registers
  return with_reader(element_format(b.element), [&](const auto& reader) {
    return stored_dots_of_rows<at_once>(reader, b, columns, blocks, rows, a, lda, sums);
  });
}

#endif

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
