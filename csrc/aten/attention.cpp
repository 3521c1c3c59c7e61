// Scaled dot product attention: which path torch takes for trn tensors, and the fused one.
#include "policy.h"
#include "registrations.h"

#include <ATen/Context.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>

namespace trn {
namespace {

// Looks at sizes, formats and flags only: under torch.compile the arguments are fake tensors.
int64_t fused_sdp_choice(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& mask, double dropout, bool is_causal, std::optional<double>,
                         bool enable_gqa) {
  const auto math = int64_t(at::SDPBackend::math);
  const auto head_dim = query.sym_size(-1);
  const bool floats = query.is_floating_point() && query.scalar_type() == key.scalar_type() &&
                      query.scalar_type() == value.scalar_type();
  const bool plain = query.dim() == 4 && key.dim() == 4 && value.dim() == 4 && !query.is_nested() &&
                     !key.is_nested() && !value.is_nested() && query.layout() == at::kStrided;
  const bool masked = mask.has_value() && mask->defined();
  if (!at::globalContext().userEnabledFlashSDP() || !plain || !floats || dropout != 0.0) return math;
  if (head_dim != key.sym_size(-1) || head_dim != value.sym_size(-1)) return math;
  if (query.sym_size(1) != key.sym_size(1) && !enable_gqa) return math;
  if (masked && (mask->requires_grad() || is_causal || (mask->dim() != 2 && mask->dim() != 4))) return math;
  if (query.sym_numel() == 0 || key.sym_numel() == 0) return math;
  return int64_t(at::SDPBackend::flash_attention);
}

int64_t fused_sdp_choice_op(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                            std::optional<double> scale, bool enable_gqa) {
  return fused_sdp_choice(query, key, value, mask, dropout, is_causal, scale, enable_gqa);
}

}  // namespace

void register_attention(Registrar& registrar) { registrar.add("_fused_sdp_choice", &fused_sdp_choice_op); }

}  // namespace trn

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &trn::fused_sdp_choice)
}
