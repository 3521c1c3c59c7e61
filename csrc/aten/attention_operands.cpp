// See attention_operands.h. Checked against torch 2.13: sdp_utils_cpp.h, FlashAttentionKernel.cpp.
#include "attention_operands.h"

#include "operands.h"
#include "policy.h"

#include <ATen/Context.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>

#include <array>

namespace trn {
namespace {

constexpr std::array kFloats{at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};

bool same_head_dim(const sdp::sdp_params& p, bool warns) {
  const c10::SymInt q = p.query.sym_size(-1), k = p.key.sym_size(-1), v = p.value.sym_size(-1);
  const bool same = q == k && q == v;
  if (!same && warns)
    TORCH_WARN("Fused attention needs query, key and value of one head size, got ", q, ", ", k,
               " and ", v, ".");
  return same;
}

bool contiguous_rows(const sdp::sdp_params& p, bool warns) {
  const c10::SymInt q = p.query.sym_stride(-1), k = p.key.sym_stride(-1),
                    v = p.value.sym_stride(-1);
  const bool contiguous = q == 1 && k == 1 && v == 1;
  if (!contiguous && warns)
    TORCH_WARN("All fused kernels require the last dimension of the input to have stride 1. Got ",
               "Query.stride(-1): ", q, ", Key.stride(-1): ", k, ", Value.stride(-1): ", v);
  return contiguous;
}

// Scripts for CUDA ask for one of its fused kernels by name. trn has one, which stands for each of
// them; where the math path is allowed as well, only the CPU's flag chooses the fused one.
bool fused_enabled() {
  const auto& context = at::globalContext();
  if (context.userEnabledFlashSDP()) return true;
  return !context.userEnabledMathSDP() &&
         (context.userEnabledMemEfficientSDP() || context.userEnabledCuDNNSDP());
}

// The CPU's conditions in the CPU's order, since some of them raise, and two that it leaves to the
// kernel: as many keys as values, and heads to divide by. `warns` says which one is not met.
bool fits_fused(const sdp::sdp_params& p, bool any_strides, bool warns = false) {
  const bool shaped = fused_enabled() && sdp::check_nested_tensor(p, warns) &&
                      sdp::check_for_dropout(p, warns) && sdp::check_tensor_shapes(p, warns);
  if (!shaped || p.key.sym_size(-3) == 0 || p.value.sym_size(-3) == 0) return false;
  return sdp::check_batch_size_and_num_heads_dense<true>(p, warns) &&
         sdp::check_attn_mask_shape(p, warns) && same_head_dim(p, warns) &&
         sdp::check_nonzero_sequence_lengths_dense(p, warns) &&
         (any_strides || contiguous_rows(p, warns)) && sdp::check_tensor_dtype(p, kFloats, warns) &&
         p.key.sym_size(-2) == p.value.sym_size(-2);
}

void check_mask(const at::Tensor& query, const at::Tensor& mask) {
  const auto dtype = mask.scalar_type();
  TORCH_CHECK(dtype == at::kBool || dtype == at::kFloat || dtype == query.scalar_type(),
              "fused attention: a mask of ", dtype, " for queries of ", query.scalar_type(),
              "; it is bool, float32 or of the queries' dtype");
  TORCH_CHECK(mask.dim() == 2 || mask.dim() == 4,
              "fused attention: attention mask dim in {2, 4}, got ", mask.dim());
}

}  // namespace

namespace {

sdp::sdp_params params_of(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                          bool enable_gqa) {
  sdp::sdp_params params{query, key, value, mask, dropout, is_causal, enable_gqa};
  if (mask.has_value() && !mask->defined()) params.attn_mask.reset();
  return params;
}

// The format that attention's operands are rounded to.
OperandFormat rounded_to(const at::Tensor& query) {
  if (!takes_policy(query.scalar_type())) return OperandFormat::as_given;
  return operand_formats(current_policy(), MatmulClass::attention).first;
}

}  // namespace

int64_t attention_path(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                       bool enable_gqa) {
  const bool math = at::globalContext().userEnabledMathSDP();
  TORCH_CHECK(math || fused_enabled(),
              "No viable backend for scaled_dot_product_attention was found. This is likely due to "
              "turning off both the math kernel and the fused kernels.");
  const OperandFormat format = rounded_to(query);
  const bool rounds = format != OperandFormat::as_given;
  const auto params = params_of(query, key, value, mask, dropout, is_causal, enable_gqa);
  const bool fits = fits_fused(params, rounds);
  // A policy that quantises attention does so in its two products, along their own axes.
  const bool by_products = rounds && (is_mx(format) || query.sym_numel() == 0);
  if (fits && !by_products) return int64_t(at::SDPBackend::flash_attention);
  if (!math && !fits) {
    fits_fused(params, rounds, /*warns=*/true);
    TORCH_CHECK(false, "No available kernel.  Aborting execution.");
  }
  return int64_t(at::SDPBackend::math);
}

bool products_for_fused(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                        bool enable_gqa) {
  return rounded_to(query) != OperandFormat::as_given &&
         fits_fused(params_of(query, key, value, mask, dropout, is_causal, enable_gqa), true);
}

void check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     double dropout, const std::optional<at::Tensor>& mask) {
  TORCH_CHECK(dropout == 0.0, "fused attention on trn has no dropout: the math path has");
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
              "fused attention: accepts only 4 dims inputs shape of {B, H, T, K}, got ",
              query.sizes(), ", ", key.sizes(), " and ", value.sizes());
  const auto dtype = query.scalar_type();
  TORCH_CHECK(
      at::isFloatingType(dtype) && key.scalar_type() == dtype && value.scalar_type() == dtype,
      "fused attention: expected query, key and value of one floating-point dtype, got ", dtype,
      ", ", key.scalar_type(), " and ", value.scalar_type());
  TORCH_CHECK(key.size(3) == query.size(3) && value.size(3) == query.size(3),
              "fused attention: Q/K/V should have the same head size, got ", query.size(3), ", ",
              key.size(3), " and ", value.size(3));
  TORCH_CHECK(key.sizes() == value.sizes() && key.size(0) == query.size(0) && key.size(1) > 0 &&
                  query.size(1) % key.size(1) == 0,
              "fused attention: expected one batch size, keys like values, and heads of keys that "
              "divide those of queries, got ",
              query.sizes(), ", ", key.sizes(), " and ", value.sizes());
  if (mask.has_value() && mask->defined()) {
    check_mask(query, *mask);
    mask->expand({query.size(0), query.size(1), query.size(2), key.size(2)});  // or raises
  }
}

void check_attention_backward(const at::Tensor& grad_out, const at::Tensor& query,
                              const at::Tensor& key, const at::Tensor& value, const at::Tensor& out,
                              const at::Tensor& logsumexp, double dropout,
                              const std::optional<at::Tensor>& mask) {
  check_attention(query, key, value, dropout, mask);
  const auto dtype = query.scalar_type();
  TORCH_CHECK(grad_out.sizes() == query.sizes() && out.sizes() == query.sizes() &&
                  grad_out.scalar_type() == dtype && out.scalar_type() == dtype,
              "fused attention: expected results and their gradients like the queries, ", dtype,
              query.sizes(), ", got ", out.scalar_type(), out.sizes(), " and ",
              grad_out.scalar_type(), grad_out.sizes());
  const auto wanted = query.sizes().slice(0, 3);
  TORCH_CHECK(logsumexp.sizes() == wanted &&
                  logsumexp.scalar_type() == (dtype == at::kDouble ? at::kDouble : at::kFloat),
              "fused attention: expected logsumexp of ", wanted, ", got ", logsumexp.scalar_type(),
              logsumexp.sizes());
}

at::Tensor with_contiguous_rows(const at::Tensor& x) {
  return x.stride(-1) == 1 ? x : x.contiguous();
}

}  // namespace trn
