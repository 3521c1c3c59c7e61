// Convolutions of operands that the policy rounds to bfloat16, by the host's instructions for
// them where they are faster than its own convolution in float32.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>

namespace trn {

// The window of a convolution, of which an axis is a row's or a column's.
struct Window {
  c10::SymIntArrayRef stride, padding, dilation;
  bool transposed;
  c10::SymInt groups;
};

// Float32 results of host tensors; nothing where the host's kernel is to compute them, or to say
// what is wrong.
std::optional<at::Tensor> convolve_in_tiles(const at::Tensor& x, const at::Tensor& w,
                                            const std::optional<at::Tensor>& bias,
                                            const Window& window);
std::optional<at::Tensor> convolve_in_tiles_to_input(const at::Tensor& grad, const at::Tensor& x,
                                                     const at::Tensor& w, const Window& window);
std::optional<at::Tensor> convolve_in_tiles_to_filters(const at::Tensor& grad, const at::Tensor& x,
                                                       const at::Tensor& w, const Window& window);

}  // namespace trn
