// Scaled dot-product attention, forward and backward, with the chip's matmul numerics.
// [nki] nc_matmul reads bfloat16 operands and sums in float32; the softmax runs in float32 on the
// Scalar and Vector engines. [torch] masked rows as in aten/native/cpu/FlashAttentionKernel.cpp
// (2.13).
#pragma once

#include <cstdint>

#include "formats.h"

namespace trn::numerics {

// [batch, heads, rows, cols] with strides in elements; cols is the head dimension.
struct AttentionInput {
  const void* data;
  DType dtype;
  int64_t batch_stride, head_stride, row_stride, col_stride = 1;
};
struct AttentionOutput {
  void* data;
  DType dtype;
  int64_t batch_stride, head_stride, row_stride, col_stride = 1;
};

// [batch, heads, q_length, kv_length]; strides may be 0. Nothing where data is null.
struct AttentionMask {
  enum class Kind : uint8_t { float32, bfloat16, float16, boolean };  // added; or false: masked out
  const void* data = nullptr;
  Kind kind = Kind::float32;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0, col_stride = 0;
};

struct Attention {
  int64_t batch, heads, kv_heads;  // kv_heads divides heads
  int64_t q_length, kv_length, head_dim, v_dim;
  float scale;
  bool causal;      // row i sees columns 0 to i
  bool round_bf16;  // the operands of every product, probabilities and their gradients included
  AttentionMask mask = {};
};

// out = softmax(scale * q k^T + mask) v, and logsumexp [batch, heads, q_length] float32,
// contiguous.
//   With s the masked scores in float32 and m the largest of a row: p = exp(s - m), logsumexp =
//   m + log(sum p), out = (p v) / sum p with p as an operand rounded and in the sum not. out is
//   rounded once. A row that is masked out has out = 0 and logsumexp = 0. exp is within 2 units in
//   the last place and 0 below 2^-126. Results do not depend on the number of threads.
void attention_forward(const Attention& shape, const AttentionInput& q, const AttentionInput& k,
                       const AttentionInput& v, const AttentionOutput& out, float* logsumexp);

// With p = exp(s - logsumexp) and d = sum(grad_out * out) of a row:
//   grad_v = p^T grad_out, ds = p * (grad_out v^T - d), grad_q = scale * ds k, grad_k = scale *
//   ds^T q,
// p and ds rounded as operands, sums in float32, gradients rounded once.
void attention_backward(const Attention& shape, const AttentionInput& grad_out,
                        const AttentionInput& q, const AttentionInput& k, const AttentionInput& v,
                        const AttentionInput& out, const float* logsumexp,
                        const AttentionOutput& grad_q, const AttentionOutput& grad_k,
                        const AttentionOutput& grad_v);

}  // namespace trn::numerics
