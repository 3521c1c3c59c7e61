// Convolution forward and backward under the precision policy, by tiles or on the host's kernels.
//
// Bound here, not left to torch: its choice of an algorithm for an unknown device ends in an error.
#include "operands.h"
#include "policy.h"
#include "products.h"
#include "registrations.h"
#include "tiled_convolution.h"

#include <ATen/ops/convolution_backward_ops.h>
#include <ATen/ops/convolution_ops.h>
#include <ATen/ops/convolution_overrideable_ops.h>
#include <ATen/ops/sum_ops.h>

#include <vector>

namespace trn {
namespace {

bool rounds_input(const at::Tensor& input) {
  return takes_policy(input.scalar_type()) &&
         !operand_formats(current_policy(), MatmulClass::convolution).as_given();
}

// Operands of several dtypes are the host's kernel's to refuse.
bool has_dtype(const std::optional<at::Tensor>& tensor, at::ScalarType dtype) {
  return !tensor.has_value() || !tensor->defined() || tensor->scalar_type() == dtype;
}

at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                    c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  Launch launch("aten::convolution", input, weight, bias, stride, padding, dilation, transposed,
                output_padding, groups);
  HostCall call(launch.device(), "aten::convolution");
  const auto dtype = input.scalar_type();
  const bool rounded = rounds_input(input) && has_dtype(weight, dtype) && has_dtype(bias, dtype);
  at::Tensor out = host_convolution(call.alias(input), call.alias(weight), call.alias(bias), stride,
                                    padding, dilation, transposed, output_padding, groups, rounded);
  launch.retire(out);
  return call.adopt(std::move(out));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
    at::OptionalSymIntArrayRef bias_sizes, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> output_mask) {
  Launch launch("aten::convolution_backward", grad_output, input, weight, bias_sizes, stride,
                padding, dilation, transposed, output_padding, groups, output_mask);
  HostCall call(launch.device(), "aten::convolution_backward");
  const auto dtype = input.scalar_type();
  const bool rounded =
      rounds_input(input) && has_dtype(weight, dtype) && has_dtype(grad_output, dtype);
  auto [grad_x, grad_w, grad_b] = host_convolution_backward(
      call.alias(grad_output), call.alias(input), call.alias(weight), bias_sizes, stride, padding,
      dilation, transposed, output_padding, groups, output_mask, rounded);
  launch.retire();
  return {call.adopt(std::move(grad_x)), call.adopt(std::move(grad_w)),
          call.adopt(std::move(grad_b))};
}

}  // namespace

at::Tensor host_convolution(at::Tensor x, at::Tensor w, std::optional<at::Tensor> b,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                            c10::SymIntArrayRef dilation, bool transposed,
                            c10::SymIntArrayRef output_padding, c10::SymInt groups, bool rounded) {
  const at::ScalarType dtype = x.scalar_type();
  if (rounded) {
    if (auto made = convolve_in_tiles(x, w, b, {stride, padding, dilation, transposed, groups}))
      return round_result(std::move(*made), dtype);
    x = to_bf16_operand(x);
    w = to_bf16_operand(w);
    if (b.has_value() && b->defined()) b = b->to(at::kFloat);
  }
  at::Tensor out =
      at::_ops::convolution::redispatch(host().keys, x, w, b, stride, padding, dilation, transposed,
                                        output_padding, std::move(groups));
  return rounded ? round_result(std::move(out), dtype) : out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> host_convolution_backward(
    at::Tensor g, at::Tensor x, at::Tensor w, at::OptionalSymIntArrayRef bias_sizes,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> output_mask, bool rounded) {
  const at::ScalarType dtype = x.scalar_type();
  const at::Tensor given = g;
  const bool sums_given = rounded && output_mask[2];
  std::optional<at::Tensor> in_tiles[2];
  if (rounded) {
    output_mask[2] = false;  // the bias's gradient is a sum, of which no operand is rounded
    const Window window{stride, padding, dilation, transposed, groups};
    if (output_mask[0]) in_tiles[0] = convolve_in_tiles_to_input(g, x, w, window);
    if (output_mask[1]) in_tiles[1] = convolve_in_tiles_to_filters(g, x, w, window);
    for (size_t i = 0; i < 2; ++i) output_mask[i] = output_mask[i] && !in_tiles[i].has_value();
  }
  at::Tensor grad_x, grad_w, grad_b;
  if (!rounded || output_mask[0] || output_mask[1]) {
    if (rounded) {
      g = to_bf16_operand(g);
      x = to_bf16_operand(x);
      w = to_bf16_operand(w);
    }
    std::tie(grad_x, grad_w, grad_b) = at::_ops::convolution_backward::redispatch(
        host().keys, g, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding,
        std::move(groups), output_mask);
  }
  if (in_tiles[0].has_value()) grad_x = *in_tiles[0];
  if (in_tiles[1].has_value()) grad_w = *in_tiles[1];
  if (!rounded) return {grad_x, grad_w, grad_b};
  if (sums_given) {
    std::vector<int64_t> dims{0};
    for (int64_t dim = 2; dim < given.dim(); ++dim) dims.push_back(dim);
    grad_b = at::_ops::sum_dim_IntList::redispatch(host().keys, given, dims, false, at::kFloat);
  }
  return {round_result(std::move(grad_x), dtype), round_result(std::move(grad_w), dtype),
          round_result(std::move(grad_b), dtype)};
}

void register_convolution(Registrar& registrar) {
  registrar.add("convolution", &convolve);
  registrar.add("convolution_overrideable", &convolve);
  registrar.add("convolution_backward", &convolve_backward);
}

}  // namespace trn
