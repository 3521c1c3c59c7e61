// Matmul microkernels of one instruction set.
#pragma once

#include "simd-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

TRN_INLINE f32v multiply_add(f32v a, f32v b, f32v c) {
#if TRN_ISA == 512
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif TRN_ISA == 2
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

struct Float32Product {
  TRN_INLINE static f32v run(uint32_t a, u32v b, f32v c) {
    return multiply_add(splat(__builtin_bit_cast(float, a)), (f32v)b, c);
  }
};

#ifdef TRN_BF16
// Two products and two sums, each rounded once; subnormal inputs and results count as zero.
struct Bf16PairProduct {
  TRN_INLINE static f32v run(uint32_t a, u32v b, f32v c) {
    return (f32v)_mm512_dpbf16_ps((__m512)c, (__m512bh)splat(a), (__m512bh)b);
  }
};
#endif

constexpr int panel_vectors = 2;
constexpr int64_t panel_columns = panel_vectors * lanes;
#if TRN_ISA == 512
constexpr int tile_rows = 12;  // 24 sums, 2 of B and a broadcast in 32 registers
#else
constexpr int tile_rows = 6;  // 12 sums, 2 of B and a broadcast in 16 registers
#endif

// A packed panel of A is [steps / 16][tile_rows][16] words, or [steps][tile_rows] where it is kept
// by steps; one of B is [steps][panel_columns].
template <class Product, int rows, bool by_steps>
void gemm_tile(int64_t steps, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc,
               bool accumulate) {
  constexpr int64_t row_stride = by_steps ? 1 : 16, step_stride = by_steps ? tile_rows : 1;
  f32v sum[rows][panel_vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v)
      sum[r][v] = accumulate ? load<f32v>(c + r * ldc + v * lanes) : f32v{};

  const auto step = [&](const uint32_t* at) __attribute__((always_inline)) {
    u32v columns[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v) columns[v] = load<u32v>(b + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; ++v)
        sum[r][v] = Product::run(at[r * row_stride], columns[v], sum[r][v]);
    b += panel_columns;
  };
  for (; steps >= 16; steps -= 16, a += tile_rows * 16) {
#pragma GCC unroll 4
    for (int s = 0; s < 16; ++s) step(a + s * step_stride);
  }
  for (int64_t s = 0; s < steps; ++s) step(a + s * step_stride);

#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v) store(c + r * ldc + v * lanes, sum[r][v]);
}

template <class Product, bool by_steps, int rows>
void gemm_rows(int64_t wanted, int64_t steps, const uint32_t* a, const uint32_t* b, float* c,
               int64_t ldc, bool accumulate) {
  if constexpr (rows > 0) {
    if (wanted == rows) return gemm_tile<Product, rows, by_steps>(steps, a, b, c, ldc, accumulate);
    gemm_rows<Product, by_steps, rows - 1>(wanted, steps, a, b, c, ldc, accumulate);
  }
}

template <class Product>
void gemm_run(int64_t rows, int64_t steps, const uint32_t* a, bool a_by_steps, const uint32_t* b,
              float* c, int64_t ldc, bool accumulate) {
  const auto run =
      a_by_steps ? gemm_rows<Product, true, tile_rows> : gemm_rows<Product, false, tile_rows>;
  run(rows, steps, a, b, c, ldc, accumulate);
}

// Float32 words of a by bfloat16 pairs of b: the sums, and their order, of float32 words of both.
template <int rows, bool by_steps>
void gemm_tile_of_pairs(int64_t steps, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc,
                        bool accumulate) {
  constexpr int64_t row_stride = by_steps ? 1 : 16;
  f32v sum[rows][panel_vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v)
      sum[r][v] = accumulate ? load<f32v>(c + r * ldc + v * lanes) : f32v{};

  const auto word = [&](int64_t s) __attribute__((always_inline)) {
    return a + (by_steps ? s * tile_rows : s / 16 * 16 * tile_rows + s % 16);
  };
  const auto step = [&](const uint32_t* at, auto half) __attribute__((always_inline)) {
    u32v columns[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v) {
      const u32v pair = load<u32v>(b + v * lanes);
      columns[v] = half.value == 0 ? pair << 16 : pair & 0xffff0000;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; ++v)
        sum[r][v] = Float32Product::run(at[r * row_stride], columns[v], sum[r][v]);
  };
  for (int64_t s = 0; s < steps; s += 2, b += panel_columns) {
    step(word(s), std::integral_constant<int, 0>());
    asm("" : "+r"(b));  // load the pairs again: kept, they would push a sum out of the registers
    if (s + 1 < steps) step(word(s + 1), std::integral_constant<int, 1>());
  }

#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v) store(c + r * ldc + v * lanes, sum[r][v]);
}

template <bool by_steps, int rows>
void gemm_rows_of_pairs(int64_t wanted, int64_t steps, const uint32_t* a, const uint32_t* b,
                        float* c, int64_t ldc, bool accumulate) {
  if constexpr (rows > 0) {
    if (wanted == rows) return gemm_tile_of_pairs<rows, by_steps>(steps, a, b, c, ldc, accumulate);
    gemm_rows_of_pairs<by_steps, rows - 1>(wanted, steps, a, b, c, ldc, accumulate);
  }
}

inline void gemm_of_pairs(int64_t rows, int64_t steps, const uint32_t* a, bool a_by_steps,
                          const uint32_t* b, float* c, int64_t ldc, bool accumulate) {
  const auto run =
      a_by_steps ? gemm_rows_of_pairs<true, tile_rows> : gemm_rows_of_pairs<false, tile_rows>;
  run(rows, steps, a, b, c, ldc, accumulate);
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
