// Vectors of TRN_LANES 32-bit lanes, for the kernels of one instruction set.
#pragma once

#include "instruction_set.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

#define TRN_INLINE inline __attribute__((always_inline))

constexpr int lanes = TRN_LANES;
typedef float f32v __attribute__((vector_size(4 * TRN_LANES)));
typedef uint32_t u32v __attribute__((vector_size(4 * TRN_LANES)));
typedef int32_t i32v __attribute__((vector_size(4 * TRN_LANES)));
typedef uint16_t u16v __attribute__((vector_size(2 * TRN_LANES)));
typedef uint8_t u8v __attribute__((vector_size(TRN_LANES)));

template <class V, class T>
TRN_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
TRN_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

TRN_INLINE u32v splat(uint32_t x) { return u32v{} + x; }
TRN_INLINE f32v splat(float x) { return x - f32v{}; }  // not 0 + x, which is an addition for -0

// For what an inner loop reads more than once: gcc would load or make it anew.
template <class V>
TRN_INLINE V held(V v) {
#if TRN_ISA == 512
  asm("" : "+v"(v));
#elif TRN_ISA == 2
  asm("" : "+x"(v));
#endif
  return v;
}
TRN_INLINE u32v in_register(uint32_t x) { return held(splat(x)); }

// Elements of two vectors: even and odd ones apart, and in order again.
struct Vectors2 {
  f32v first, second;
};
using EachLane = std::make_integer_sequence<int, lanes>;
template <int... i>
TRN_INLINE Vectors2 apart(f32v low, f32v high, std::integer_sequence<int, i...>) {
  return {__builtin_shufflevector(low, high, 2 * i...),
          __builtin_shufflevector(low, high, 2 * i + 1 ...)};
}
template <int... i>
TRN_INLINE Vectors2 in_order(f32v even, f32v odd, std::integer_sequence<int, i...>) {
  return {__builtin_shufflevector(even, odd, i / 2 + i % 2 * lanes...),
          __builtin_shufflevector(even, odd, (lanes + i) / 2 + i % 2 * lanes...)};
}

TRN_INLINE u32v select(i32v mask, u32v yes, u32v no) { return mask ? yes : no; }

TRN_INLINE u32v umax(u32v a, u32v b) {
#if TRN_ISA == 512
  return (u32v)_mm512_max_epu32((__m512i)a, (__m512i)b);
#elif TRN_ISA == 2
  return (u32v)_mm256_max_epu32((__m256i)a, (__m256i)b);
#else
  return (i32v)(a > b) ? a : b;
#endif
}
TRN_INLINE u32v umin(u32v a, u32v b) {
#if TRN_ISA == 512
  return (u32v)_mm512_min_epu32((__m512i)a, (__m512i)b);
#elif TRN_ISA == 2
  return (u32v)_mm256_min_epu32((__m256i)a, (__m256i)b);
#else
  return (i32v)(a < b) ? a : b;
#endif
}

TRN_INLINE uint32_t largest(u32v v) {
#if TRN_ISA == 512
  return _mm512_reduce_max_epu32((__m512i)v);
#elif TRN_ISA == 2
  __m128i m =
      _mm_max_epu32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
#else
  uint32_t m = v[0];
  for (int i = 1; i < lanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

TRN_INLINE u32v widen16(const uint16_t* p) {
#if TRN_ISA == 512
  return (u32v)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif TRN_ISA == 2
  return (u32v)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return __builtin_convertvector(load<u16v>(p), u32v);
#endif
}
TRN_INLINE u32v widen8(const uint8_t* p) {
#if TRN_ISA == 512
  return (u32v)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif TRN_ISA == 2
  return (u32v)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  u32v v;
  for (int i = 0; i < lanes; ++i) v[i] = p[i];
  return v;
#endif
}

// Two lanes of a byte, the low half first.
TRN_INLINE u32v widen4(const uint8_t* p) {
#if TRN_ISA == 512
  const __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return (u32v)_mm512_or_si512(bytes, _mm512_slli_epi64(bytes, 28)) & 15;
#elif TRN_ISA == 2
  const __m256i bytes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(load<int>(p)));
  return (u32v)_mm256_or_si256(bytes, _mm256_slli_epi64(bytes, 28)) & 15;
#else
  u32v v;
  for (int i = 0; i < lanes; ++i) v[i] = p[i / 2] >> i % 2 * 4 & 15;
  return v;
#endif
}

// Lanes hold 16-bit values.
TRN_INLINE void narrow16(u32v v, uint16_t* p) {
#if TRN_ISA == 512
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)v));
#elif TRN_ISA == 2
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0xd8)));
#else
  store(p, __builtin_convertvector(v, u16v));
#endif
}
// The low 8 bits of each lane.
TRN_INLINE void narrow8(u32v v, uint8_t* p) {
#if TRN_ISA == 512
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#elif TRN_ISA == 2
  const __m256i picked = _mm256_shuffle_epi8(
      (__m256i)v, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0,
                                   4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const __m128i bytes =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(picked), _mm256_extracti128_si256(picked, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
#else
  for (int i = 0; i < lanes; ++i) p[i] = static_cast<uint8_t>(v[i]);
#endif
}

constexpr uint32_t sign_mask = 0x80000000, infinity_bits = 0x7f800000, quiet_nan = 0x7fc00000;

// float32 bits -> the nearest bfloat16 as float32 bits; NaN becomes quiet.
TRN_INLINE u32v nearest_bf16(u32v bits) {
  const u32v rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
  const u32v nan = (bits & sign_mask) | quiet_nan;
  return select((bits & 0x7fffffff) > splat(infinity_bits), nan, rounded);
}
TRN_INLINE u32v nearest_tf32(u32v bits) {
  const u32v rounded = (bits + 0xfff + ((bits >> 13) & 1)) & 0xffffe000;
  const u32v nan = (bits & sign_mask) | quiet_nan;
  return select((bits & 0x7fffffff) > splat(infinity_bits), nan, rounded);
}

TRN_INLINE u32v half_to_float(u32v half) {
  const u32v magnitude = half & 0x7fff;
  const f32v scaled = (f32v)(magnitude << 13) * splat(0x1p112f);
  u32v bits = (u32v)scaled;
  bits = select(magnitude > splat(0x7c00u), (magnitude << 13) | quiet_nan, bits);
  bits = select(magnitude == splat(0x7c00u), splat(infinity_bits), bits);
  return bits | ((half & 0x8000) << 16);
}
TRN_INLINE u32v float_to_half(u32v bits) {
  const u32v magnitude = bits & 0x7fffffff;
  // As for every format (mx-inl.h): the exponent of the result's last place picks a number to add
  // that makes the adder round there.
  const u32v limited = umin(magnitude, splat(0x47800000u));  // 65536
  const u32v exponent = umax(limited & infinity_bits, splat(0x38800000u));
  const u32v magic = exponent + (13u << 23);
  const f32v sum = (f32v)limited + (f32v)magic;
  u32v code = (u32v)sum - magic + ((exponent - 0x38800000) >> 13);
  code = umin(code, splat(0x7c00u));
  code = select(magnitude > splat(infinity_bits), splat(0x7e00u), code);
  return code | ((bits & sign_mask) >> 16);
}

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

TRN_INLINE u32v load_bits(const float* p) { return load<u32v>(p); }
TRN_INLINE u32v load_bits(const BFloat16* p) {
  return widen16(reinterpret_cast<const uint16_t*>(p)) << 16;
}
TRN_INLINE u32v load_bits(const Half* p) {
#if TRN_ISA == 512
  return (u32v)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif TRN_ISA == 2
  return (u32v)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return half_to_float(widen16(reinterpret_cast<const uint16_t*>(p)));
#endif
}

TRN_INLINE void store_nearest(float* p, u32v bits) { store(p, bits); }
TRN_INLINE void store_nearest(BFloat16* p, u32v bits) {
  narrow16(nearest_bf16(bits) >> 16, reinterpret_cast<uint16_t*>(p));
}
TRN_INLINE void store_nearest(Half* p, u32v bits) {
  narrow16(float_to_half(bits), reinterpret_cast<uint16_t*>(p));
}

// For what is a bfloat16 already.
TRN_INLINE void store_exact(float* p, u32v bits) { store(p, bits); }
TRN_INLINE void store_exact(BFloat16* p, u32v bits) {
  narrow16(bits >> 16, reinterpret_cast<uint16_t*>(p));
}
TRN_INLINE void store_exact(Half* p, u32v bits) { store_nearest(p, bits); }

TRN_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
TRN_INLINE void prefetch_write(const void* p) { __builtin_prefetch(p, 1, 2); }

// Calls f with a null pointer of the storage type.
template <class F>
TRN_INLINE void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      return f(static_cast<float*>(nullptr));
    case DType::bfloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case DType::float16:
      return f(static_cast<Half*>(nullptr));
  }
}

template <class T>
TRN_INLINE void copy_items(T* to, const T* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
