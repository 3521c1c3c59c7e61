// See tiled_convolution.h.
#include "tiled_convolution.h"

#include "numerics/convolution.h"
#include "operands.h"

#include <ATen/ops/empty.h>

#include <vector>

namespace trn {
namespace {

using at::Tensor;
using numerics::Convolution;

bool is_plain(const Tensor& x, at::ScalarType dtype) {
  return x.is_cpu() && x.layout() == at::kStrided && x.scalar_type() == dtype && !x.is_neg() &&
         x.numel() > 0 && x.is_contiguous();
}

// The convolution of an image by filters, or nothing.
std::optional<Convolution> convolution_of(const Tensor& x, const Tensor& w, const Window& window) {
  const auto dtype = x.scalar_type();
  if (dtype != at::kFloat && dtype != at::kBFloat16) return std::nullopt;
  const int64_t rank = x.dim() - 2;
  if (window.transposed || rank < 1 || rank > 2 || w.dim() != x.dim()) return std::nullopt;
  if (!is_plain(x, dtype) || !is_plain(w, dtype)) return std::nullopt;
  if (x.suggest_memory_format() != at::MemoryFormat::Contiguous ||
      w.suggest_memory_format() != at::MemoryFormat::Contiguous)
    return std::nullopt;  // whose results lie so too
  const int64_t groups = window.groups.expect_int();
  Convolution c{x.size(0), groups, w.size(1), 0, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}};
  if (groups < 1 || w.size(0) % groups != 0 || x.size(1) != w.size(1) * groups) return std::nullopt;
  c.out_channels = w.size(0) / groups;
  for (const auto given : {window.stride, window.padding, window.dilation})
    if (int64_t(given.size()) != rank) return std::nullopt;
  for (int64_t i = 0; i < rank; ++i) {
    const size_t axis = size_t(2 - rank + i), from = size_t(i);
    c.in[axis] = x.size(2 + i);
    c.kernel[axis] = w.size(2 + i);
    c.stride[axis] = window.stride[from].expect_int();
    c.padding[axis] = window.padding[from].expect_int();
    c.dilation[axis] = window.dilation[from].expect_int();
    if (c.stride[axis] < 1 || c.padding[axis] < 0 || c.dilation[axis] < 1) return std::nullopt;
    const int64_t free =
        c.in[axis] + 2 * c.padding[axis] - c.dilation[axis] * (c.kernel[axis] - 1) - 1;
    if (free < 0) return std::nullopt;
    c.out[axis] = free / c.stride[axis] + 1;
  }
  return c;
}

// Measured against the host's own on a Xeon of model 207, two threads, and on an EPYC, one.
bool is_worth_it(const Convolution& c) {
  return numerics::convolves_in_tiles() && c.in_channels >= 16 && c.out_channels >= 16;
}

std::optional<Convolution> gradient_of(const Tensor& grad, const Tensor& x, const Tensor& w,
                                       const Window& window) {
  auto c = convolution_of(x, w, window);
  if (!c.has_value() || !is_worth_it(*c) || !is_plain(grad, x.scalar_type())) return std::nullopt;
  std::vector<int64_t> sizes{x.size(0), w.size(0)};
  sizes.insert(sizes.end(), c->out.begin() + (4 - x.dim()), c->out.end());
  if (grad.sizes() != at::IntArrayRef(sizes)) return std::nullopt;
  return c;
}

Tensor floats(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, like.options().dtype(at::kFloat));
}

}  // namespace

std::optional<Tensor> convolve_in_tiles(const Tensor& x, const Tensor& w,
                                        const std::optional<Tensor>& bias, const Window& window) {
  const auto c = convolution_of(x, w, window);
  if (!c.has_value() || !is_worth_it(*c)) return std::nullopt;
  Tensor added;
  if (bias.has_value() && bias->defined()) {
    if (bias->dim() != 1 || bias->size(0) != w.size(0)) return std::nullopt;
    added = bias->to(at::kFloat).contiguous();
  }
  std::vector<int64_t> sizes{x.size(0), w.size(0)};
  sizes.insert(sizes.end(), c->out.begin() + (4 - x.dim()), c->out.end());
  Tensor y = floats(sizes, x);
  const bool made = numerics::convolve(
      *c, numerics_dtype(x.scalar_type()), x.const_data_ptr(), w.const_data_ptr(),
      added.defined() ? added.const_data_ptr<float>() : nullptr, y.mutable_data_ptr<float>());
  return made ? std::optional(y) : std::nullopt;
}

std::optional<Tensor> convolve_in_tiles_to_input(const Tensor& grad, const Tensor& x,
                                                 const Tensor& w, const Window& window) {
  const auto c = gradient_of(grad, x, w, window);
  if (!c.has_value()) return std::nullopt;
  Tensor grad_x = floats(x.sizes(), x);
  const bool made =
      numerics::convolve_to_input(*c, numerics_dtype(x.scalar_type()), grad.const_data_ptr(),
                                  w.const_data_ptr(), grad_x.mutable_data_ptr<float>());
  return made ? std::optional(grad_x) : std::nullopt;
}

std::optional<Tensor> convolve_in_tiles_to_filters(const Tensor& grad, const Tensor& x,
                                                   const Tensor& w, const Window& window) {
  const auto c = gradient_of(grad, x, w, window);
  if (!c.has_value()) return std::nullopt;
  Tensor grad_w = floats(w.sizes(), w);
  const bool made =
      numerics::convolve_to_filters(*c, numerics_dtype(x.scalar_type()), grad.const_data_ptr(),
                                    x.const_data_ptr(), grad_w.mutable_data_ptr<float>());
  return made ? std::optional(grad_w) : std::nullopt;
}

}  // namespace trn
