// What the kernels of the trn key compute on host tensors: csrc/numerics on the CPU, the operators
// of torch.ops.trn on a foreign host, where each is bound to that backend's kernels.
#pragma once

#include "numerics/formats.h"
#include "products.h"

namespace trn {

// As host_product. Rounded stochastically where results are.
at::Tensor product_on_host(const at::Tensor& a, const at::Tensor& b, OperandFormats formats,
                           const std::optional<at::Tensor>& addend, const at::Scalar& beta,
                           const at::Scalar& alpha, at::ScalarType out_dtype);

// As host_attention and host_attention_backward.
std::tuple<at::Tensor, at::Tensor> attention_on_host(const at::Tensor& query, const at::Tensor& key,
                                                     const at::Tensor& value, bool is_causal,
                                                     const std::optional<at::Tensor>& mask,
                                                     std::optional<double> scale);
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward_on_host(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& out, const at::Tensor& logsumexp, bool is_causal,
    const std::optional<at::Tensor>& mask, std::optional<double> scale);

// float32, contiguous -> `dtype`, rounded stochastically.
at::Tensor stochastic_on_host(const at::Tensor& x, at::ScalarType dtype,
                              const numerics::Rounding& rounding);

}  // namespace trn
