// The matmul microkernel for AMX; the rest is kernels_avx512.cpp.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")
#endif

namespace trn::numerics::amx_bf16 {
namespace {

// A tile register holds 16 rows of 16 words. Four of them are the sums of 32 rows by 32 columns,
// two hold 16 steps of a panel of a, two of b.
constexpr int64_t side = 16, panel_columns = 2 * side;

struct alignas(64) TileShapes {  // the operand of LDTILECFG
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {side, side, side, side, side, side, side, side};
};
constexpr TileShapes shapes;
static_assert(sizeof(TileShapes) == 64);

// What was written to memory so far must lie there when a tile is loaded: GCC does not know that
// its intrinsics read it.
inline void written() { asm volatile("" ::: "memory"); }

// 16 steps: a [32, 16] words, b [16, 32]. Each sum gains the sum of two chains of 16 products, the
// even k's and the odd ones.
template <bool both>
inline void step(const uint32_t* a, const uint32_t* b, int64_t b_stride = panel_columns) {
  constexpr int64_t word = sizeof(uint32_t);
  _tile_loadd(6, b, b_stride * word);
  _tile_loadd(4, a, side * word);
  _tile_loadd(7, b + side, b_stride * word);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (both) {
    _tile_loadd(5, a + side * side, side * word);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool both>
inline void load_sums(const float* c, int64_t ldc, bool accumulate) {
  const int64_t stride = ldc * static_cast<int64_t>(sizeof(float));
  if (accumulate) {
    _tile_loadd(0, c, stride);
    _tile_loadd(1, c + side, stride);
    if constexpr (both) {
      _tile_loadd(2, c + side * ldc, stride);
      _tile_loadd(3, c + side * ldc + side, stride);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
}

template <bool both>
inline void store_sums(float* c, int64_t ldc) {
  const int64_t stride = ldc * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, c, stride);
  _tile_stored(1, c + side, stride);
  if constexpr (both) {
    _tile_stored(2, c + side * ldc, stride);
    _tile_stored(3, c + side * ldc + side, stride);
  }
}

template <bool both>
void multiply(int64_t steps, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc,
              bool accumulate) {
  load_sums<both>(c, ldc, accumulate);
  for (; steps >= side; steps -= side, a += tile_rows * side, b += side * panel_columns)
    step<both>(a, b);
  if (steps > 0) {
    alignas(64) uint32_t last_a[tile_rows * side] = {}, last_b[side * panel_columns] = {};
    for (int64_t r = 0; r < tile_rows; ++r) std::copy_n(a + r * side, steps, last_a + r * side);
    std::copy_n(b, steps * panel_columns, last_b);
    written();
    step<both>(last_a, last_b);
  }
  store_sums<both>(c, ldc);
}

template <bool both>
void multiply_taps(int64_t taps, const int64_t* offsets, int64_t steps, const uint32_t* a,
                   const uint32_t* b, int64_t b_stride, float* c, int64_t ldc, bool accumulate) {
  load_sums<both>(c, ldc, accumulate);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const uint32_t* at = b + offsets[tap];
    for (int64_t s = 0; s < steps; s += side, a += tile_rows * side, at += side * b_stride)
      step<both>(a, at, b_stride);
  }
  store_sums<both>(c, ldc);
}

}  // namespace

void begin() { _tile_loadconfig(&shapes); }
void end() { _tile_release(); }

void gemm_bf16(int64_t rows, int64_t steps, const uint32_t* a, bool, const uint32_t* b, float* c,
               int64_t ldc, bool accumulate) {
  if (rows == tile_rows) return multiply<true>(steps, a, b, c, ldc, accumulate);
  if (rows == side) return multiply<false>(steps, a, b, c, ldc, accumulate);
  alignas(64) float sums[tile_rows * panel_columns];
  if (accumulate)
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(c + r * ldc, panel_columns, sums + r * panel_columns);
  written();
  (rows > side ? multiply<true> : multiply<false>)(steps, a, b, sums, panel_columns, accumulate);
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(sums + r * panel_columns, panel_columns, c + r * ldc);
}

// Writes all rows of the tiles that hold `rows`.
void gemm_taps(int64_t rows, int64_t taps, const int64_t* offsets, int64_t steps, const uint32_t* a,
               const uint32_t* b, int64_t b_stride, float* c, int64_t ldc, bool accumulate) {
  written();
  (rows > side ? multiply_taps<true> : multiply_taps<false>)(taps, offsets, steps, a, b, b_stride,
                                                             c, ldc, accumulate);
}

}  // namespace trn::numerics::amx_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
