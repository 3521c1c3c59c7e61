// Transposition of 32-bit words of one instruction set.
#pragma once

#include "simd-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

// `count` rows by four columns. Part p of a register comes from row 4 * p + i, by loads alone; what
// is left is to transpose four by four words within each part.
#if TRN_ISA >= 2
TRN_INLINE __m128 four_words(const uint32_t* p) {
  return _mm_loadu_ps(reinterpret_cast<const float*>(p));
}

template <int count>
TRN_INLINE void transpose_rows(const uint32_t* src, int64_t src_stride, uint32_t* dst,
                               int64_t dst_stride) {
  static_assert(count == 8);
  __m256 row[4];
  for (int i = 0; i < 4; ++i)
    row[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(four_words(src + i * src_stride)),
                                  four_words(src + (i + 4) * src_stride), 1);
  for (int half = 0; half < 2; ++half) {
    const __m256 first =
        half == 0 ? _mm256_unpacklo_ps(row[0], row[1]) : _mm256_unpackhi_ps(row[0], row[1]);
    const __m256 second =
        half == 0 ? _mm256_unpacklo_ps(row[2], row[3]) : _mm256_unpackhi_ps(row[2], row[3]);
    float* to = reinterpret_cast<float*>(dst + 2 * half * dst_stride);
    _mm256_storeu_ps(to, _mm256_shuffle_ps(first, second, 0x44));
    _mm256_storeu_ps(to + dst_stride, _mm256_shuffle_ps(first, second, 0xee));
  }
}
#if TRN_ISA == 512
template <>
TRN_INLINE void transpose_rows<16>(const uint32_t* src, int64_t src_stride, uint32_t* dst,
                                   int64_t dst_stride) {
  __m512 row[4];
  for (int i = 0; i < 4; ++i) {
    const uint32_t* from = src + i * src_stride;
    row[i] = _mm512_castps128_ps512(four_words(from));
    row[i] = _mm512_insertf32x4(row[i], four_words(from + 4 * src_stride), 1);
    row[i] = _mm512_insertf32x4(row[i], four_words(from + 8 * src_stride), 2);
    row[i] = _mm512_insertf32x4(row[i], four_words(from + 12 * src_stride), 3);
  }
  for (int half = 0; half < 2; ++half) {
    const __m512 first =
        half == 0 ? _mm512_unpacklo_ps(row[0], row[1]) : _mm512_unpackhi_ps(row[0], row[1]);
    const __m512 second =
        half == 0 ? _mm512_unpacklo_ps(row[2], row[3]) : _mm512_unpackhi_ps(row[2], row[3]);
    float* to = reinterpret_cast<float*>(dst + 2 * half * dst_stride);
    _mm512_storeu_ps(to, _mm512_shuffle_ps(first, second, 0x44));
    _mm512_storeu_ps(to + dst_stride, _mm512_shuffle_ps(first, second, 0xee));
  }
}
#endif
#else
template <int count>
TRN_INLINE void transpose_rows(const uint32_t* src, int64_t src_stride, uint32_t* dst,
                               int64_t dst_stride) {
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < 4; ++j) dst[j * dst_stride + i] = src[i * src_stride + j];
}
#endif

// Rows [first, rows) in strips of `count`; returns where the last one ends. Columns are whole
// fours.
template <int count>
TRN_INLINE int64_t transpose_strips(const uint32_t* src, int64_t src_stride, int64_t first,
                                    int64_t rows, int64_t cols, uint32_t* dst, int64_t dst_stride) {
  constexpr int64_t line = 16;  // words of a cache line
  const int64_t end = first + (rows - first) / count * count;
  for (int64_t base = 0; base < cols; base += line)
    for (int64_t i = first; i < end; i += count)
      for (int64_t j = base; j < (base + line < cols ? base + line : cols); j += 4)
        transpose_rows<count>(src + i * src_stride + j, src_stride, dst + j * dst_stride + i,
                              dst_stride);
  return end;
}

inline void transpose(const uint32_t* src, int64_t src_stride, int64_t rows, int64_t cols,
                      uint32_t* dst, int64_t dst_stride) {
  const int64_t fours = cols / 4 * 4;
  int64_t done = 0;
  if constexpr (lanes == 16)
    done = transpose_strips<16>(src, src_stride, done, rows, fours, dst, dst_stride);
  done = transpose_strips<8>(src, src_stride, done, rows, fours, dst, dst_stride);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < done ? fours : 0; j < cols; ++j)
      dst[j * dst_stride + i] = src[i * src_stride + j];
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
