// What fused attention demands of its operands. torch asks first which path to take; whoever calls
// a fused kernel by its own name meets the same demands there.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace trn {

// The path that torch takes for trn tensors, an at::SDPBackend. Where attention is computed as
// given, it is the path of the CPU, whose values follow; where operands are rounded, it depends on
// no stride. Looks at sizes, formats and flags only: under torch.compile the arguments are fake.
int64_t attention_path(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                       bool enable_gqa);

// Whether a policy computes as two products what the CPU's fused kernel would take.
bool products_for_fused(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                        bool enable_gqa);

// Raises unless the fused kernels, ours and the host's, stay within these operands.
void check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     double dropout, const std::optional<at::Tensor>& mask);
void check_attention_backward(const at::Tensor& grad_out, const at::Tensor& query,
                              const at::Tensor& key, const at::Tensor& value, const at::Tensor& out,
                              const at::Tensor& logsumexp, double dropout,
                              const std::optional<at::Tensor>& mask);

// The host's kernel takes the last dimension as contiguous.
at::Tensor with_contiguous_rows(const at::Tensor& x);

}  // namespace trn
