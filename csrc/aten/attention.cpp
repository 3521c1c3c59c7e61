// Scaled dot product attention: which path torch takes for trn tensors, and the fused one.
#include "operands.h"
#include "registrations.h"

#include <ATen/Context.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward_ops.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_ops.h>

namespace trn {
namespace {

// Looks at sizes, formats and flags only: under torch.compile the arguments are fake tensors.
int64_t fused_sdp_choice(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                         std::optional<double>, bool enable_gqa) {
  const auto math = int64_t(at::SDPBackend::math);
  const auto head_dim = query.sym_size(-1);
  const bool floats = query.is_floating_point() && query.scalar_type() == key.scalar_type() &&
                      query.scalar_type() == value.scalar_type();
  const bool plain = query.dim() == 4 && key.dim() == 4 && value.dim() == 4 && !query.is_nested() &&
                     !key.is_nested() && !value.is_nested() && query.layout() == at::kStrided;
  const bool masked = mask.has_value() && mask->defined();
  // A policy that quantises attention does so in its two products, along their own axes.
  if (operand_formats(current_policy(), MatmulClass::attention).first == OperandFormat::mxfp8_e4m3)
    return math;
  if (!at::globalContext().userEnabledFlashSDP() || !plain || !floats || dropout != 0.0)
    return math;
  if (head_dim != key.sym_size(-1) || head_dim != value.sym_size(-1)) return math;
  if (query.sym_size(1) != key.sym_size(1) && !enable_gqa) return math;
  if (masked && (mask->requires_grad() || is_causal || (mask->dim() != 2 && mask->dim() != 4)))
    return math;
  if (query.sym_numel() == 0 || key.sym_numel() == 0) return math;
  return int64_t(at::SDPBackend::flash_attention);
}

int64_t fused_sdp_choice_op(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                            std::optional<double> scale, bool enable_gqa) {
  return fused_sdp_choice(query, key, value, mask, dropout, is_causal, scale, enable_gqa);
}

using Flash = at::_ops::_scaled_dot_product_flash_attention_for_cpu;
using FlashBackward = at::_ops::_scaled_dot_product_flash_attention_for_cpu_backward;
constexpr c10::DispatchKeySet kHostKeys(c10::DispatchKey::CPU);

bool rounds(const at::Tensor& query) {
  return takes_policy(query.scalar_type()) &&
         !operand_formats(current_policy(), MatmulClass::attention).as_given();
}

std::optional<at::Tensor> float_mask(HostCall& call, const std::optional<at::Tensor>& mask) {
  const auto host = call.alias(mask);
  return host.has_value() && host->defined() && host->is_floating_point() ? host->to(at::kFloat)
                                                                          : host;
}

std::tuple<at::Tensor, at::Tensor> flash(const at::Tensor& query, const at::Tensor& key,
                                         const at::Tensor& value, double dropout, bool is_causal,
                                         const std::optional<at::Tensor>& mask,
                                         std::optional<double> scale) {
  if (!rounds(query))
    return HostOp<Flash>::kernel(query, key, value, dropout, is_causal, mask, scale);
  Launch launch("aten::_scaled_dot_product_flash_attention_for_cpu", query, key, value, dropout,
                is_causal, mask, scale);
  HostCall call(launch.device(), "aten::_scaled_dot_product_flash_attention_for_cpu");
  auto [out, logsumexp] = Flash::redispatch(
      kHostKeys, to_bf16_operand(call.alias(query)), to_bf16_operand(call.alias(key)),
      to_bf16_operand(call.alias(value)), dropout, is_causal, float_mask(call, mask), scale);
  launch.retire();
  return {call.adopt(round_result(std::move(out), query.scalar_type())),
          call.adopt(std::move(logsumexp))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_backward(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& out, const at::Tensor& logsumexp, double dropout,
    bool is_causal, const std::optional<at::Tensor>& mask, std::optional<double> scale) {
  if (!rounds(query)) {
    return HostOp<FlashBackward>::kernel(grad_out, query, key, value, out, logsumexp, dropout,
                                         is_causal, mask, scale);
  }
  Launch launch("aten::_scaled_dot_product_flash_attention_for_cpu_backward", grad_out, query, key,
                value, out, logsumexp, dropout, is_causal, mask, scale);
  HostCall call(launch.device(), "aten::_scaled_dot_product_flash_attention_for_cpu_backward");
  const at::ScalarType dtype = query.scalar_type();
  auto [dq, dk, dv] = FlashBackward::redispatch(
      kHostKeys, to_bf16_operand(call.alias(grad_out)), to_bf16_operand(call.alias(query)),
      to_bf16_operand(call.alias(key)), to_bf16_operand(call.alias(value)),
      call.alias(out).to(at::kFloat), call.alias(logsumexp), dropout, is_causal,
      float_mask(call, mask), scale);
  launch.retire();
  return {call.adopt(round_result(std::move(dq), dtype)),
          call.adopt(round_result(std::move(dk), dtype)),
          call.adopt(round_result(std::move(dv), dtype))};
}

}  // namespace

void register_attention(Registrar& registrar) {
  registrar.add("_fused_sdp_choice", &fused_sdp_choice_op);
  registrar.add("_scaled_dot_product_flash_attention_for_cpu", &flash);
  registrar.add("_scaled_dot_product_flash_attention_for_cpu_backward", &flash_backward);
}

}  // namespace trn

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &trn::fused_sdp_choice)
}
