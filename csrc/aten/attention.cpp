// Scaled dot product attention: which path torch takes for trn tensors, and the fused one.
#include "attention_operands.h"
#include "on_host.h"
#include "operands.h"
#include "products.h"
#include "registrations.h"
#include "rounding_mode.h"
#include "unquantized_attention.h"

#include "numerics/attention.h"

#include <ATen/Context.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_scaled_dot_product_attention_math_native.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward_ops.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_ops.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

namespace trn {
namespace {

int64_t fused_sdp_choice(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                         std::optional<double>, bool enable_gqa) {
  return attention_path(query, key, value, mask, dropout, is_causal, enable_gqa);
}

int64_t fused_sdp_choice_op(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                            std::optional<double> scale, bool enable_gqa) {
  return fused_sdp_choice(query, key, value, mask, dropout, is_causal, scale, enable_gqa);
}

using Flash = at::_ops::_scaled_dot_product_flash_attention_for_cpu;
using FlashBackward = at::_ops::_scaled_dot_product_flash_attention_for_cpu_backward;
bool rounds_query(const at::Tensor& query) {
  return takes_policy(query.scalar_type()) &&
         !operand_formats(current_policy(), MatmulClass::attention).as_given();
}

numerics::AttentionInput input(const at::Tensor& x) {
  return {x.const_data_ptr(), numerics_dtype(x.scalar_type()),
          x.stride(0),        x.stride(1),
          x.stride(2),        x.stride(3)};
}

numerics::AttentionOutput output(const at::Tensor& x) {
  return {x.mutable_data_ptr(), numerics_dtype(x.scalar_type()),
          x.stride(0),          x.stride(1),
          x.stride(2),          x.stride(3)};
}

// [batch, heads, rows, cols] laid out [batch, rows, heads, cols], as the host's kernel does and as
// the projection that comes next reads it. Rounded stochastically it starts in float32.
at::Tensor heads_inside(const at::Tensor& like) {
  const auto dtype = stochastic_rounding() ? at::kFloat : like.scalar_type();
  return at::empty({like.size(0), like.size(2), like.size(1), like.size(3)},
                   like.options().dtype(dtype))
      .transpose(1, 2);
}

numerics::AttentionMask mask_of(const at::Tensor& mask) {
  using Kind = numerics::AttentionMask::Kind;
  const auto kind = mask.scalar_type() == at::kBool       ? Kind::boolean
                    : mask.scalar_type() == at::kBFloat16 ? Kind::bfloat16
                    : mask.scalar_type() == at::kHalf     ? Kind::float16
                                                          : Kind::float32;
  return {mask.const_data_ptr(), kind,           mask.stride(0),
          mask.stride(1),        mask.stride(2), mask.stride(3)};
}

// The mask broadcast to [batch, heads, q, kv], or undefined.
at::Tensor expanded_mask(const std::optional<at::Tensor>& mask, const at::Tensor& q,
                         const at::Tensor& k) {
  if (!mask.has_value() || !mask->defined()) return {};
  return mask->expand({q.size(0), q.size(1), q.size(2), k.size(2)});
}

numerics::Attention shape_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             bool is_causal, const at::Tensor& mask, std::optional<double> scale) {
  numerics::Attention shape{q.size(0), q.size(1),
                            k.size(1), q.size(2),
                            k.size(2), q.size(3),
                            v.size(3), float(scale.value_or(1.0 / std::sqrt(double(q.size(3))))),
                            is_causal, /*round_bf16=*/true};
  if (mask.defined()) shape.mask = mask_of(mask);
  return shape;
}

// Whether a backward pass may come, which alone reads the logarithms of the sums.
template <class... T>
bool may_go_back(const T&... tensors) {
  return at::GradMode::is_enabled() && (tensors.requires_grad() || ...);
}

std::tuple<at::Tensor, at::Tensor> flash_on_host(const at::Tensor& q, const at::Tensor& k,
                                                 const at::Tensor& v, bool is_causal,
                                                 const std::optional<at::Tensor>& mask,
                                                 std::optional<double> scale) {
  return naming_trn(op_name<Flash>(), [&] {
    return Flash::redispatch(trn::host().keys, q, k, v, /*dropout_p=*/0.0, is_causal, mask, scale);
  });
}

std::tuple<at::Tensor, at::Tensor> flash(const at::Tensor& query, const at::Tensor& key,
                                         const at::Tensor& value, double dropout, bool is_causal,
                                         const std::optional<at::Tensor>& mask,
                                         std::optional<double> scale) {
  const bool rounded = rounds_query(query);
  check_attention(query, key, value, dropout, mask);
  const bool by_torch = !rounded && !host().foreign;
  const at::Tensor q = by_torch ? with_contiguous_rows(query) : query;
  const at::Tensor k = by_torch ? with_contiguous_rows(key) : key;
  const at::Tensor v = by_torch ? with_contiguous_rows(value) : value;
  if (by_torch && stochastic_rounding())
    return HostOp<Flash>::kernel(q, k, v, dropout, is_causal, mask, scale);
  // Signatures have the name's address: with and without the logarithms they are two.
  static const std::string with_sums = op_name<Flash>();
  const bool sums = may_go_back(query, key, value);
  const char* name = sums ? with_sums.c_str() : op_name<Flash>();
  Launch launch(name, q, k, v, dropout, is_causal, mask, scale);
  HostCall call(launch.device(), op_name<Flash>());
  const auto forward = rounded          ? &attention_on_host
                       : host().foreign ? &unquantized_attention
                                        : &flash_on_host;
  auto [out, logsumexp] =
      forward(call.alias(q), call.alias(k), call.alias(v), is_causal, call.alias(mask), scale);
  if (sums) {
    launch.retire(out, logsumexp);
  } else {
    launch.retire(out);
  }
  return {call.adopt(std::move(out)), call.adopt(std::move(logsumexp))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_backward(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& out, const at::Tensor& logsumexp, double dropout,
    bool is_causal, const std::optional<at::Tensor>& mask, std::optional<double> scale) {
  if (!grad_out.defined()) return {};  // a result whose gradient nobody gave has none to pass on
  const bool rounded = rounds_query(query);
  check_attention_backward(grad_out, query, key, value, out, logsumexp, dropout, mask);
  if (!rounded && !host().foreign) {
    return HostOp<FlashBackward>::kernel(grad_out, with_contiguous_rows(query),
                                         with_contiguous_rows(key), with_contiguous_rows(value),
                                         with_contiguous_rows(out), logsumexp, dropout, is_causal,
                                         mask, scale);
  }
  Launch launch(op_name<FlashBackward>(), grad_out, query, key, value, out, logsumexp, dropout,
                is_causal, mask, scale);
  HostCall call(launch.device(), op_name<FlashBackward>());
  const auto backward = rounded ? &attention_backward_on_host : &unquantized_attention_backward;
  auto [dq, dk, dv] =
      backward(call.alias(grad_out), call.alias(query), call.alias(key), call.alias(value),
               call.alias(out), call.alias(logsumexp), is_causal, call.alias(mask), scale);
  launch.retire(dq, dk, dv);
  return {call.adopt(std::move(dq)), call.adopt(std::move(dk)), call.adopt(std::move(dv))};
}

// ---- attention as two products ----

// The mask with what lies after a query hidden too, as the fused kernels have it.
at::Tensor causal_mask(const at::Tensor& mask, const at::Tensor& query, const at::Tensor& key) {
  const at::Tensor seen =
      at::ones_symint({query.sym_size(-2), key.sym_size(-2)}, query.options().dtype(at::kBool))
          .tril();
  if (mask.scalar_type() == at::kBool) return mask.logical_and(seen);
  return mask.masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity());
}

// torch's function refuses a mask beside is_causal, which its fused kernels take. Where a policy
// chose the products in their place, so does this one.
std::tuple<at::Tensor, at::Tensor> attention_by_products(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
    const std::optional<at::Tensor>& dropout_mask, std::optional<double> scale, bool enable_gqa) {
  const bool both = is_causal && mask.has_value() && mask->defined();
  if (both && products_for_fused(query, key, value, mask, dropout, is_causal, enable_gqa)) {
    return at::native::_scaled_dot_product_attention_math(
        query, key, value, causal_mask(*mask, query, key), dropout, /*is_causal=*/false,
        dropout_mask, scale, enable_gqa);
  }
  return at::native::_scaled_dot_product_attention_math(query, key, value, mask, dropout, is_causal,
                                                        dropout_mask, scale, enable_gqa);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> host_attention(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v, bool is_causal,
                                                  const std::optional<at::Tensor>& mask,
                                                  std::optional<double> scale) {
  check_attention(q, k, v, /*dropout=*/0.0, mask);
  const at::Tensor m = expanded_mask(mask, q, k);
  // Rounded stochastically the result starts in float32.
  const auto dtype = stochastic_rounding() ? at::kFloat : q.scalar_type();
  at::Tensor out = at::empty_like(q, q.options().dtype(dtype));
  at::Tensor logsumexp =
      at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat));
  numerics::attention_forward(shape_of(q, k, v, is_causal, m, scale), input(q), input(k), input(v),
                              output(out), logsumexp.mutable_data_ptr<float>());
  return {round_result(std::move(out), q.scalar_type()), logsumexp};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> host_attention_backward(
    const at::Tensor& g, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& logsumexp, bool is_causal,
    const std::optional<at::Tensor>& mask, std::optional<double> scale) {
  check_attention_backward(g, q, k, v, out, logsumexp, /*dropout=*/0.0, mask);
  const at::Tensor m = expanded_mask(mask, q, k), sums = logsumexp.contiguous();
  at::Tensor dq = heads_inside(q), dk = heads_inside(k), dv = heads_inside(v);
  numerics::attention_backward(shape_of(q, k, v, is_causal, m, scale), input(g), input(q), input(k),
                               input(v), input(out), sums.const_data_ptr<float>(), output(dq),
                               output(dk), output(dv));
  const at::ScalarType dtype = q.scalar_type();
  return {round_result(std::move(dq), dtype), round_result(std::move(dk), dtype),
          round_result(std::move(dv), dtype)};
}

void register_attention(Registrar& registrar) {
  registrar.add("_fused_sdp_choice", &fused_sdp_choice_op);
  registrar.add("_scaled_dot_product_flash_attention_for_cpu", &flash);
  registrar.add("_scaled_dot_product_flash_attention_for_cpu_backward", &flash_backward);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("_scaled_dot_product_attention_math", &attention_by_products);
}
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, library) {
  library.impl("_scaled_dot_product_attention_math", &attention_by_products);
}

}  // namespace trn

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &trn::fused_sdp_choice)
}
