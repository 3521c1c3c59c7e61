// The matmul microkernel for AVX-512 with the bfloat16 dot product; the rest is kernels_avx512.cpp.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC bug 105593, fixed in 14: its own AVX-512 headers use an undefined vector on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <type_traits>

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
