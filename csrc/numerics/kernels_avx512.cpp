// The kernels for AVX-512 F, BW, DQ and VL: sixteen lanes.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC bug 105593, fixed in 14: its own AVX-512 headers use an undefined vector on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "kernels.h"

// After the headers: nothing inline of theirs may be compiled for this instruction set.
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define TRN_NAMESPACE avx512
#define TRN_ISA 512
#define TRN_LANES 16
#include "kernels-inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
