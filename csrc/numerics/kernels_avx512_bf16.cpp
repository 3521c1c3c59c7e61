// The matmul microkernel for AVX-512 with the bfloat16 dot product; the rest is kernels_avx512.cpp.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC bug 105593, fixed in 14: its own AVX-512 headers use an undefined vector on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels.h"

// After the headers: nothing inline of theirs may be compiled for this instruction set.
#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define TRN_NAMESPACE avx512_bf16
#define TRN_ISA 512
#define TRN_LANES 16
#define TRN_BF16
#include "microkernel-inl.h"

namespace trn::numerics::avx512_bf16 {
namespace {

constexpr int64_t side = 16;  // steps of a row of a that lie together

template <int rows>
void multiply_taps(int64_t taps, const int64_t* offsets, int64_t steps, int64_t a_stride,
                   const uint32_t* a, const uint32_t* b, int64_t b_stride, float* c, int64_t ldc,
                   bool accumulate) {
  f32v sum[rows][panel_vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v)
      sum[r][v] = accumulate ? load<f32v>(c + r * ldc + v * lanes) : f32v{};
  for (int64_t tap = 0; tap < taps; ++tap) {
    const uint32_t* at = b + offsets[tap];
    for (int64_t s = 0; s < steps; s += side, a += a_stride) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < side; ++i, at += b_stride) {
        u32v columns[panel_vectors];
#pragma GCC unroll 2
        for (int v = 0; v < panel_vectors; ++v) columns[v] = load<u32v>(at + v * lanes);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
          for (int v = 0; v < panel_vectors; ++v)
            sum[r][v] = Bf16PairProduct::run(a[r * side + i], columns[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v) store(c + r * ldc + v * lanes, sum[r][v]);
}

template <int rows, class... Arguments>
void multiply_rows(int64_t wanted, Arguments... arguments) {
  if constexpr (rows > 0) {
    if (wanted == rows) return multiply_taps<rows>(arguments...);
    multiply_rows<rows - 1>(wanted, arguments...);
  }
}

}  // namespace

void gemm_taps(int64_t rows, int64_t taps, const int64_t* offsets, int64_t steps, const uint32_t* a,
               const uint32_t* b, int64_t b_stride, float* c, int64_t ldc, bool accumulate) {
  for (int64_t r = 0; r < rows; r += tile_rows)
    multiply_rows<tile_rows>(std::min<int64_t>(tile_rows, rows - r), taps, offsets, steps,
                             tap_rows * side, a + r * side, b, b_stride, c + r * ldc, ldc,
                             accumulate);
}

void gemm_bf16(int64_t rows, int64_t steps, const uint32_t* a, bool a_by_steps, const uint32_t* b,
               float* c, int64_t ldc, bool accumulate) {
  gemm_run<Bf16PairProduct>(rows, steps, a, a_by_steps, b, c, ldc, accumulate);
}

}  // namespace trn::numerics::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
