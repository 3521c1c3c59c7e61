// Row operations of attention of one instruction set.
#pragma once

#include "gemm-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

// exp(x) for x <= about 88, within 2 units in the last place; 0 where that is below 2^-126.
TRN_INLINE f32v exponential(f32v x) {
  // exp(x) = 2^n exp(r), |r| <= ln(2) / 2, with ln(2) in two parts and a Taylor polynomial: the
  // first term left out is r^8 / 8! < 5.2e-9.
  const f32v magic = splat(0x1.8p23f);
  const f32v n = (x * splat(0x1.715476p0f) + magic) - magic;
  f32v r = multiply_add(n, splat(-0x1.62e400p-1f), x);
  r = multiply_add(n, splat(-0x1.7f7d1cp-20f), r);
  f32v p = splat(1.0f / 5040);
  p = multiply_add(p, r, splat(1.0f / 720));
  p = multiply_add(p, r, splat(1.0f / 120));
  p = multiply_add(p, r, splat(1.0f / 24));
  p = multiply_add(p, r, splat(1.0f / 6));
  p = multiply_add(p, r, splat(0.5f));
  p = multiply_add(p * r, r, r) + splat(1.0f);
  const u32v power = ((u32v) __builtin_convertvector(n, i32v) + 127) << 23;
  const u32v value = (u32v)(p * (f32v)power);
  return (f32v)select(x < splat(-0x1.5d589ep6f), splat(0u), value);  // ln(2^-126)
}

template <class Combine>
TRN_INLINE float fold(f32v v, Combine combine) {
  float items[lanes];
  store(items, v);
  for (int width = lanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) items[i] = combine(items[i], items[i + width]);
  return items[0];
}

// scores = scale * scores + added (or nothing); returns the largest, -inf for none. Rows have room
// for whole vectors; what lies beyond count is left as it comes.
inline float scale_scores(float* scores, int64_t count, float scale, const float* added) {
  const float lowest = -__builtin_inff();
  f32v top = splat(lowest);
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) {
    f32v s = load<f32v>(scores + j) * splat(scale);
    if (added != nullptr) s = s + load<f32v>(added + j);
    store(scores + j, s);
    top = s > top ? s : top;
  }
  float largest_score = fold(top, [](float a, float b) { return a > b ? a : b; });
  for (; j < count; ++j) {
    scores[j] *= scale;
    if (added != nullptr) scores[j] += added[j];
    largest_score = scores[j] > largest_score ? scores[j] : largest_score;
  }
  return largest_score;
}

// scores = exp(scores - shift), 0 from count to padded (a multiple of `lanes`); returns the sum.
inline float exponentiate(float* scores, int64_t count, int64_t padded, float shift) {
  f32v sum = splat(0.0f);
  for (int64_t j = 0; j < padded; j += lanes) {
    f32v p = exponential(load<f32v>(scores + j) - splat(shift));
    if (j + lanes > count)
      for (int i = 0; i < lanes; ++i) p[i] = j + i < count ? p[i] : 0.0f;
    store(scores + j, p);
    sum = sum + p;
  }
  return fold(sum, [](float a, float b) { return a + b; });
}

// gradients = p * (gradients - d), 0 where p is.
inline void softmax_backward(const float* p, float* gradients, int64_t padded, float d) {
  for (int64_t j = 0; j < padded; j += lanes) {
    const f32v weight = load<f32v>(p + j);
    const f32v value = weight * (load<f32v>(gradients + j) - splat(d));
    store(gradients + j, weight == splat(0.0f) ? splat(0.0f) : value);
  }
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
