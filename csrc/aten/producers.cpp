// torch.ops.trn: producers of a product's operand. `*_mx` gives the result with its MX codes and
// scales; `*_operand`, for compiled graphs, the operand as `round_operand` gives it, the result
// itself where `keep` asks for it, and what a norm's backward needs. Made of torch's operators
// here; a host with fused kernels binds its own (torch_trn_emu/triton/activations.py, norms.py).
#include "operator_named.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/var_mean.h>
#include <torch/library.h>

#include <string_view>

namespace trn {
namespace {

using at::Tensor;
using Str = std::string_view;
using OptionalTensor = std::optional<Tensor>;
using Produced = std::tuple<Tensor, Tensor, Tensor>;

// --- with codes ----------------------------------------------------------------------------------

Produced with_codes(Tensor y, Str element, Str rule) {
  using Signature = std::tuple<Tensor, Tensor>(const Tensor&, int64_t, Str, Str, Str, Str, int64_t);
  static const auto op = operator_named<Signature>("trn::quantize_mx");
  auto [codes, scales] = op.call(y, -1, element, rule, "nearest_even", "contiguous", 0);
  return {std::move(y), std::move(codes), std::move(scales)};
}

Produced gelu(const Tensor& x, Str approximate, Str element, Str rule) {
  return with_codes(at::gelu(x, approximate), element, rule);
}

Produced silu(const Tensor& x, Str element, Str rule) {
  return with_codes(at::silu(x), element, rule);
}

Produced rms_norm(const Tensor& x, const OptionalTensor& weight, double eps, Str element,
                  Str rule) {
  return with_codes(at::rms_norm(x, {x.size(-1)}, weight, eps), element, rule);
}

Produced layer_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                    double eps, Str element, Str rule) {
  return with_codes(at::layer_norm(x, {x.size(-1)}, weight, bias, eps), element, rule);
}

// --- as an operand -------------------------------------------------------------------------------

using Operand = std::tuple<Tensor, Tensor>;  // rounded; the result itself, or undefined

Operand as_operand(Tensor y, Str format, bool keep) {
  static const auto op = operator_named<Tensor(const Tensor&, Str, int64_t)>("trn::round_operand");
  const int64_t k = y.size(-1);
  const int64_t rows = k == 0 ? 0 : y.numel() / k;
  Tensor rounded = op.call(y.reshape({rows, k}), format, -1).view(y.sizes());
  return {std::move(rounded), keep ? std::move(y) : Tensor()};
}

Tensor gated(Tensor y, const OptionalTensor& gate) { return gate ? y * *gate : std::move(y); }

Operand gelu_operand(const Tensor& x, const OptionalTensor& gate, Str approximate, Str format,
                     bool keep) {
  return as_operand(gated(at::gelu(x, approximate), gate), format, keep);
}

Operand silu_operand(const Tensor& x, const OptionalTensor& gate, Str format, bool keep) {
  return as_operand(gated(at::silu(x), gate), format, keep);
}

// In float32 and rounded once, where a parameter has not the input's format (autocast).
Tensor rms_norm_of_mixed(const Tensor& x, const OptionalTensor& weight, double eps) {
  if (!weight || weight->scalar_type() == x.scalar_type()) {
    return at::rms_norm(x, {x.size(-1)}, weight, eps);
  }
  const Tensor wide = weight->to(at::kFloat);
  return at::rms_norm(x.to(at::kFloat), {x.size(-1)}, wide, eps).to(x.scalar_type());
}

Produced rms_norm_operand(const Tensor& x, const OptionalTensor& weight, double eps,
                          bool round_before_weight, Str format, bool keep) {
  Tensor result = rms_norm_of_mixed(x, round_before_weight ? std::nullopt : weight, eps);
  if (round_before_weight && weight) result = (result * *weight).to(x.scalar_type());
  auto [operand, y] = as_operand(std::move(result), format, keep);
  Tensor rstd = (x.to(at::kFloat).square().mean(-1, /*keepdim=*/true) + eps).rsqrt();
  return {std::move(operand), std::move(y), std::move(rstd)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm_operand(const Tensor& x,
                                                              const OptionalTensor& weight,
                                                              const OptionalTensor& bias,
                                                              double eps, Str format, bool keep) {
  auto [operand, y] = as_operand(at::layer_norm(x, {x.size(-1)}, weight, bias, eps), format, keep);
  auto [variance, mean] = at::var_mean(x.to(at::kFloat), -1, /*correction=*/0, /*keepdim=*/true);
  return {std::move(operand), std::move(y), std::move(mean), (variance + eps).rsqrt()};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trn, library) {
  const auto define = [&](const std::string& name, const std::string& arguments) {
    const std::string codes = name + "_mx(Tensor x, " + arguments +
                              "str element=\"float8_e4m3fn\", str scale_rule=\"trn3\") -> "
                              "(Tensor y, Tensor codes, Tensor scales)";
    library.def(codes.c_str(), {at::Tag::pt2_compliant_tag});
  };
  define("gelu", "*, str approximate=\"none\", ");
  define("silu", "*, ");
  define("rms_norm", "Tensor? weight=None, *, float eps=1e-06, ");
  define("layer_norm", "Tensor? weight=None, Tensor? bias=None, *, float eps=1e-05, ");

  const auto define_operand = [&](const std::string& name, const std::string& arguments,
                                  const std::string& kept) {
    const std::string operand = name + "_operand(Tensor x, " + arguments +
                                "str format=\"mxfp8\", bool keep=True) -> "
                                "(Tensor operand, Tensor y" +
                                kept + ")";
    library.def(operand.c_str(), {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
  };
  define_operand("gelu", "Tensor? gate=None, *, str approximate=\"none\", ", "");
  define_operand("silu", "Tensor? gate=None, *, ", "");
  define_operand("rms_norm",
                 "Tensor? weight=None, *, float eps=1e-06, bool round_before_weight=False, ",
                 ", Tensor rstd");
  define_operand("layer_norm", "Tensor? weight=None, Tensor? bias=None, *, float eps=1e-05, ",
                 ", Tensor mean, Tensor rstd");
}

TORCH_LIBRARY_IMPL(trn, CompositeExplicitAutograd, library) {
  library.impl("gelu_mx", &gelu);
  library.impl("silu_mx", &silu);
  library.impl("rms_norm_mx", &rms_norm);
  library.impl("layer_norm_mx", &layer_norm);
  library.impl("gelu_operand", &gelu_operand);
  library.impl("silu_operand", &silu_operand);
  library.impl("rms_norm_operand", &rms_norm_operand);
  library.impl("layer_norm_operand", &layer_norm_operand);
}

}  // namespace trn
