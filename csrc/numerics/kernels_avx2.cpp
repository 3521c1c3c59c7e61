// The kernels for AVX2, FMA and F16C: eight lanes.
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "kernels.h"

// After the headers: nothing inline of theirs may be compiled for this instruction set.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define TRN_NAMESPACE avx2
#define TRN_ISA 2
#define TRN_LANES 8
#include "kernels-inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
