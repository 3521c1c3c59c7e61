// Convolution forward and backward under the precision policy, on the host's kernels.
//
// Bound here, not left to torch: its choice of an algorithm for an unknown device ends in an error.
#include "operands.h"
#include "policy.h"
#include "registrations.h"

#include <ATen/ops/convolution_backward_ops.h>
#include <ATen/ops/convolution_ops.h>
#include <ATen/ops/convolution_overrideable_ops.h>

namespace trn {
namespace {

constexpr c10::DispatchKeySet kHostKeys(c10::DispatchKey::CPU);

bool rounds(const at::Tensor& input) {
  return takes_policy(input.scalar_type()) &&
         !operand_formats(current_policy(), MatmulClass::convolution).as_given();
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                       c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                       c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  Launch launch("aten::convolution", input, weight, bias, stride, padding, dilation, transposed,
                output_padding, groups);
  HostCall call(launch.device(), "aten::convolution");
  at::Tensor x = call.alias(input), w = call.alias(weight);
  std::optional<at::Tensor> b = call.alias(bias);
  const at::ScalarType dtype = input.scalar_type();
  const bool rounded = rounds(input) && dtype == weight.scalar_type();
  if (rounded) {
    x = to_bf16_operand(x);
    w = to_bf16_operand(w);
    if (b.has_value() && b->defined()) b = b->to(at::kFloat);
  }
  at::Tensor out = at::_ops::convolution::redispatch(kHostKeys, x, w, b, stride, padding, dilation,
                                                     transposed, output_padding, groups);
  launch.retire(out);
  return call.adopt(rounded ? round_result(std::move(out), dtype) : std::move(out));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
    at::OptionalSymIntArrayRef bias_sizes, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> output_mask) {
  Launch launch("aten::convolution_backward", grad_output, input, weight, stride, padding, dilation,
                transposed, output_padding, groups, output_mask[0], output_mask[1], output_mask[2]);
  HostCall call(launch.device(), "aten::convolution_backward");
  at::Tensor g = call.alias(grad_output), x = call.alias(input), w = call.alias(weight);
  const at::ScalarType dtype = input.scalar_type();
  const bool rounded = rounds(input) && dtype == weight.scalar_type();
  if (rounded) {
    g = to_bf16_operand(g);
    x = to_bf16_operand(x);
    w = to_bf16_operand(w);
  }
  auto [grad_x, grad_w, grad_b] = at::_ops::convolution_backward::redispatch(
      kHostKeys, g, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding, groups,
      output_mask);
  launch.retire();
  if (rounded) {
    grad_x = round_result(std::move(grad_x), dtype);
    grad_w = round_result(std::move(grad_w), dtype);
    grad_b = round_result(std::move(grad_b), dtype);
  }
  return {call.adopt(std::move(grad_x)), call.adopt(std::move(grad_w)),
          call.adopt(std::move(grad_b))};
}

}  // namespace

void register_convolution(Registrar& registrar) {
  registrar.add("convolution", &convolution);
  registrar.add("convolution_overrideable", &convolution);
  registrar.add("convolution_backward", &convolution_backward);
}

}  // namespace trn
