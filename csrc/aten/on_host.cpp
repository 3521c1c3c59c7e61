// See on_host.h.
#include "on_host.h"

#include "operands.h"
#include "operator_named.h"
#include "rounding_mode.h"
#include "runtime/host.h"

#include <ATen/ops/empty_like.h>

#include <string_view>

namespace trn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Str = std::string_view;

Str name_of(OperandFormat format) {
  static const std::vector<std::string> names = operand_format_names();
  return names[size_t(format)];
}

// Rounded stochastically a result starts in float32, which an operand's dtype asks for.
at::ScalarType first_dtype(at::ScalarType dtype) {
  return stochastic_rounding() ? at::kFloat : dtype;
}
Tensor first(const Tensor& operand) { return operand.to(first_dtype(operand.scalar_type())); }

}  // namespace

Tensor product_on_host(const Tensor& a, const Tensor& b, OperandFormats formats,
                       const OptionalTensor& addend, const at::Scalar& beta,
                       const at::Scalar& alpha, at::ScalarType out_dtype) {
  if (!host().foreign) return host_product(a, b, formats, addend, beta, alpha, out_dtype);
  static const auto op =
      operator_named<Tensor(const Tensor&, const Tensor&, Str, Str, at::ScalarType,
                            const OptionalTensor&, const at::Scalar&, const at::Scalar&)>(
          "trn::product");
  Tensor out = op.call(a, b, name_of(formats.first), name_of(formats.second),
                       first_dtype(out_dtype), addend, beta, alpha);
  return round_result(std::move(out), out_dtype);
}

std::tuple<Tensor, Tensor> attention_on_host(const Tensor& query, const Tensor& key,
                                             const Tensor& value, bool is_causal,
                                             const OptionalTensor& mask,
                                             std::optional<double> scale) {
  if (!host().foreign) return host_attention(query, key, value, is_causal, mask, scale);
  static const auto op =
      operator_named<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, bool,
                                                const OptionalTensor&, std::optional<double>)>(
          "trn::attention");
  auto [out, logsumexp] = op.call(first(query), first(key), first(value), is_causal, mask, scale);
  return {round_result(std::move(out), query.scalar_type()), std::move(logsumexp)};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward_on_host(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& out, const Tensor& logsumexp, bool is_causal, const OptionalTensor& mask,
    std::optional<double> scale) {
  if (!host().foreign) {
    return host_attention_backward(grad_out, query, key, value, out, logsumexp, is_causal, mask,
                                   scale);
  }
  static const auto op = operator_named<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
      bool, const OptionalTensor&, std::optional<double>)>("trn::attention_backward");
  auto [dq, dk, dv] = op.call(first(grad_out), first(query), first(key), first(value), first(out),
                              logsumexp, is_causal, mask, scale);
  const at::ScalarType dtype = query.scalar_type();
  return {round_result(std::move(dq), dtype), round_result(std::move(dk), dtype),
          round_result(std::move(dv), dtype)};
}

Tensor stochastic_on_host(const Tensor& x, at::ScalarType dtype,
                          const numerics::Rounding& rounding) {
  if (host().foreign) {
    static const auto op = operator_named<Tensor(const Tensor&, at::ScalarType, int64_t, int64_t)>(
        "trn::stochastic_round");
    return op.call(x, dtype, int64_t(rounding.seed), int64_t(rounding.offset));
  }
  return host_stochastic_round(x, dtype, rounding);
}

}  // namespace trn
