// The matmul family on host tensors, with the operands' formats given: what the kernels of the trn
// key run after aliasing, and what compiled graphs call.
#pragma once

#include "policy.h"

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <array>
#include <optional>
#include <tuple>

namespace trn {

// alpha a b + beta addend, rounded once to `out_dtype`. a [batch, m, k], [m, k] or [k]; b likewise;
// the operands may differ in dtype. The addend broadcasts to the result.
at::Tensor host_product(const at::Tensor& a, const at::Tensor& b, OperandFormats formats,
                        const std::optional<at::Tensor>& addend, const at::Scalar& beta,
                        const at::Scalar& alpha, at::ScalarType out_dtype);

// `rounded`: operands to bfloat16, float32 sums, one rounding; else as the host computes it.
at::Tensor host_convolution(at::Tensor input, at::Tensor weight, std::optional<at::Tensor> bias,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                            c10::SymIntArrayRef dilation, bool transposed,
                            c10::SymIntArrayRef output_padding, c10::SymInt groups, bool rounded);

std::tuple<at::Tensor, at::Tensor, at::Tensor> host_convolution_backward(
    at::Tensor grad_output, at::Tensor input, at::Tensor weight,
    at::OptionalSymIntArrayRef bias_sizes, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> output_mask, bool rounded);

// Fused attention with bfloat16 operands: out laid out as the query, logsumexp [batch, heads, rows]
// contiguous.
std::tuple<at::Tensor, at::Tensor> host_attention(const at::Tensor& query, const at::Tensor& key,
                                                  const at::Tensor& value, bool is_causal,
                                                  const std::optional<at::Tensor>& mask,
                                                  std::optional<double> scale);

std::tuple<at::Tensor, at::Tensor, at::Tensor> host_attention_backward(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& out, const at::Tensor& logsumexp, bool is_causal,
    const std::optional<at::Tensor>& mask, std::optional<double> scale);

}  // namespace trn
