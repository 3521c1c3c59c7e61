// A C interface to csrc/numerics for the tests and benchmarks (ctypes), with OpenMP as thread pool.
#include <omp.h>

#include <algorithm>

#include "attention.h"
#include "formats.h"
#include "gemm.h"
#include "isa.h"
#include "mx.h"
#include "parallel.h"
#include "rounding.h"
#include "stored.h"

using namespace trn::numerics;

namespace {

void omp_for(int64_t begin, int64_t end, int64_t grain, LoopBody body, void* context) {
  const int64_t most = (end - begin + grain - 1) / grain;
  const int threads =
      omp_in_parallel() ? 1 : static_cast<int>(std::min<int64_t>(most, omp_get_max_threads()));
  if (threads == 1) return body(context, begin, end);
#pragma omp parallel num_threads(threads)
  {
    const int64_t count = omp_get_num_threads(), id = omp_get_thread_num();
    const int64_t share = (end - begin + count - 1) / count;
    const int64_t lo = begin + id * share, hi = std::min(end, lo + share);
    if (lo < hi) body(context, lo, hi);
  }
}

int omp_threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

Rounding rounding(int stochastic, uint64_t seed, uint64_t offset) {
  return {stochastic ? RoundingMode::stochastic : RoundingMode::nearest_even, seed, offset};
}

}  // namespace

extern "C" {

struct CMatrix {
  const void* data;
  int dtype;
  int64_t rows, cols, row_stride, col_stride;
};

struct CMx {
  int element, rule, grouping, through_bf16, stochastic;
  uint64_t seed, offset;
};

struct COperand {
  const void* data;
  int dtype;
  int64_t row_stride, col_stride, batch_stride;
  int rounding;
  CMx mx;
};

struct CResult {
  void* data;
  int dtype;
  int64_t row_stride, col_stride, batch_stride;
  int stochastic;
  uint64_t seed, offset;
};

static MatrixView view(const CMatrix& x) {
  return {x.data, static_cast<DType>(x.dtype), x.rows, x.cols, x.row_stride, x.col_stride};
}

static MxSpec spec(const CMx& s) {
  return {static_cast<Element>(s.element), static_cast<ScaleRule>(s.rule),
          static_cast<Grouping>(s.grouping), s.through_bf16 != 0,
          rounding(s.stochastic, s.seed, s.offset)};
}

static Operand operand(const COperand& x) {
  return {x.data,
          static_cast<DType>(x.dtype),
          x.row_stride,
          x.col_stride,
          {static_cast<OperandRounding::Kind>(x.rounding), spec(x.mx)},
          x.batch_stride};
}

int trn_isa() { return static_cast<int>(isa()); }
void trn_limit_isa(int limit) { limit_isa(static_cast<Isa>(limit)); }
void trn_threads(int threads) {
  if (threads == 1) return set_thread_pool(nullptr, nullptr);
  omp_set_num_threads(threads);
  set_thread_pool(omp_for, omp_threads);
}

void trn_encode(int format, const float* x, uint8_t* codes, int64_t count, int special,
                int stochastic, uint64_t seed, uint64_t offset) {
  encode(static_cast<Format>(format), x, codes, count, static_cast<Overflow>(special),
         rounding(stochastic, seed, offset));
}
void trn_decode(int format, const uint8_t* codes, float* x, int64_t count) {
  decode(static_cast<Format>(format), codes, x, count);
}
void trn_round_to(int format, const float* x, float* y, int64_t count, int special, int stochastic,
                  uint64_t seed, uint64_t offset) {
  round_to(static_cast<Format>(format), x, y, count, static_cast<Overflow>(special),
           rounding(stochastic, seed, offset));
}
void trn_convert(int from, const void* x, int to, void* y, int64_t count, int stochastic,
                 uint64_t seed, uint64_t offset) {
  convert(static_cast<DType>(from), x, static_cast<DType>(to), y, count,
          rounding(stochastic, seed, offset));
}
void trn_random_words(uint64_t seed, uint64_t offset, uint64_t first, int64_t count,
                      uint32_t* words) {
  random_words(seed, offset, first, count, words);
}
void trn_reference_random_words(uint64_t seed, uint64_t offset, uint64_t first, int64_t count,
                                uint32_t* words) {
  for (int64_t i = 0; i < count; ++i)
    words[i] = reference::random_word(seed, offset, first + static_cast<uint64_t>(i));
}
void trn_reference_encode(int format_id, const float* x, uint32_t* codes, int64_t count,
                          int special, const uint32_t* random) {
  const FloatFormat& f = format(static_cast<Format>(format_id));
  for (int64_t i = 0; i < count; ++i)
    codes[i] = random != nullptr ? reference::encode_stochastic(
                                       f, x[i], static_cast<Overflow>(special), random[i])
                                 : reference::encode(f, x[i], static_cast<Overflow>(special));
}
void trn_reference_decode(int format_id, const uint32_t* codes, float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    x[i] = reference::decode(format(static_cast<Format>(format_id)), codes[i]);
}
float trn_decode_e8m0(uint8_t code) { return decode_e8m0(code); }
uint8_t trn_encode_e8m0(float scale) { return encode_e8m0(scale); }

int64_t trn_scale_count(int64_t k, int grouping) {
  return scale_count(k, static_cast<Grouping>(grouping));
}
void trn_quantize(int use_reference, const CMatrix* x, int axis, const CMx* s, uint8_t* codes,
                  int64_t codes_stride, uint8_t* scales, int64_t scales_stride) {
  (use_reference ? reference::quantize : quantize)(view(*x), axis, spec(*s), codes, codes_stride,
                                                   scales, scales_stride);
}
void trn_dequantize(int use_reference, const uint8_t* codes, int64_t codes_stride,
                    const uint8_t* scales, int64_t scales_stride, int axis, int element,
                    int grouping, int64_t rows, int64_t cols, int out_dtype, void* y,
                    int64_t y_stride) {
  (use_reference ? reference::dequantize : dequantize)(
      codes, codes_stride, scales, scales_stride, axis, static_cast<Element>(element),
      static_cast<Grouping>(grouping), rows, cols, static_cast<DType>(out_dtype), y, y_stride);
}
void trn_quantize_dequantize(const CMatrix* x, int axis, const CMx* s, int out_dtype, void* y,
                             int64_t y_stride) {
  quantize_dequantize(view(*x), axis, spec(*s), static_cast<DType>(out_dtype), y, y_stride);
}

// addend may be null; it is read as an operand without rounding.
void trn_gemm(int use_reference, int64_t batch, int64_t m, int64_t n, int64_t k, const COperand* a,
              const COperand* b, const CResult* c, float alpha, float beta,
              const COperand* addend) {
  const Result result{c->data,         static_cast<DType>(c->dtype),
                      c->row_stride,   c->col_stride,
                      c->batch_stride, rounding(c->stochastic, c->seed, c->offset)};
  Addend d;
  if (addend != nullptr)
    d = {addend->data, static_cast<DType>(addend->dtype), addend->row_stride, addend->col_stride,
         addend->batch_stride};
  (use_reference ? reference::gemm : gemm)(batch, m, n, k, operand(*a), operand(*b), result, alpha,
                                           beta, d);
}

void trn_gemm_stored(int64_t m, int64_t n, int64_t k, const float* a, const uint8_t* codes,
                     int64_t column_bytes, const uint8_t* scales, int64_t column_scales,
                     int element, float* c) {
  gemm_stored(m, n, k, a,
              {codes, column_bytes, scales, column_scales, static_cast<Element>(element)},
              {c, DType::float32, n});
}

struct CTensor {
  void* data;
  int dtype;
  int64_t batch_stride, head_stride, row_stride, col_stride;
};

struct CAttention {
  int64_t batch, heads, kv_heads, q_length, kv_length, head_dim, v_dim;
  float scale;
  int causal, round_bf16;
  const void* mask;
  int mask_kind;
  int64_t mask_batch, mask_head, mask_row, mask_col;
};

static AttentionInput input(const CTensor& x) {
  return {x.data,      static_cast<DType>(x.dtype), x.batch_stride, x.head_stride, x.row_stride,
          x.col_stride};
}
static AttentionOutput output(const CTensor& x) {
  return {x.data,      static_cast<DType>(x.dtype), x.batch_stride, x.head_stride, x.row_stride,
          x.col_stride};
}
static Attention attention(const CAttention& s) {
  return {s.batch,
          s.heads,
          s.kv_heads,
          s.q_length,
          s.kv_length,
          s.head_dim,
          s.v_dim,
          s.scale,
          s.causal != 0,
          s.round_bf16 != 0,
          {s.mask, static_cast<AttentionMask::Kind>(s.mask_kind), s.mask_batch, s.mask_head,
           s.mask_row, s.mask_col}};
}

void trn_attention_forward(const CAttention* s, const CTensor* q, const CTensor* k,
                           const CTensor* v, const CTensor* out, float* logsumexp) {
  attention_forward(attention(*s), input(*q), input(*k), input(*v), output(*out), logsumexp);
}
void trn_attention_backward(const CAttention* s, const CTensor* grad_out, const CTensor* q,
                            const CTensor* k, const CTensor* v, const CTensor* out,
                            const float* logsumexp, const CTensor* grad_q, const CTensor* grad_k,
                            const CTensor* grad_v) {
  attention_backward(attention(*s), input(*grad_out), input(*q), input(*k), input(*v), input(*out),
                     logsumexp, output(*grad_q), output(*grad_k), output(*grad_v));
}

}  // extern "C"
