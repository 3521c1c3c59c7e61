// Attention with operands as they are given, made of the host's own operators: for a foreign host,
// which has no kernel under the CPU's operator. Memory grows with the square of the length.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace trn {

// On host tensors; shapes, mask and results as in products.h. Computes in float32, float64 stays.
std::tuple<at::Tensor, at::Tensor> unquantized_attention(const at::Tensor& query,
                                                         const at::Tensor& key,
                                                         const at::Tensor& value, bool is_causal,
                                                         const std::optional<at::Tensor>& mask,
                                                         std::optional<double> scale);

std::tuple<at::Tensor, at::Tensor, at::Tensor> unquantized_attention_backward(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& out, const at::Tensor& logsumexp, bool is_causal,
    const std::optional<at::Tensor>& mask, std::optional<double> scale);

}  // namespace trn
