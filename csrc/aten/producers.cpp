// torch.ops.trn: producers of a product's operand with its MX codes and scales. Made of torch's
// operators here; a host with fused kernels binds its own (torch_trn_emu/triton/producers.py).
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <torch/library.h>

#include <string_view>

namespace trn {
namespace {

using at::Tensor;
using Str = std::string_view;
using OptionalTensor = std::optional<Tensor>;
using Produced = std::tuple<Tensor, Tensor, Tensor>;

Produced with_codes(Tensor y, Str element, Str rule) {
  using Signature = std::tuple<Tensor, Tensor>(const Tensor&, int64_t, Str, Str, Str, Str, int64_t);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("trn::quantize_mx", "").typed<Signature>();
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

}  // namespace

TORCH_LIBRARY_FRAGMENT(trn, library) {
  const auto define = [&](const std::string& name_and_arguments) {
    const std::string schema = name_and_arguments +
                               "str element=\"float8_e4m3fn\", str scale_rule=\"trn3\") -> "
                               "(Tensor y, Tensor codes, Tensor scales)";
    library.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  };
  define("gelu_mx(Tensor x, *, str approximate=\"none\", ");
  define("silu_mx(Tensor x, *, ");
  define("rms_norm_mx(Tensor x, Tensor? weight=None, *, float eps=1e-06, ");
  define("layer_norm_mx(Tensor x, Tensor? weight=None, Tensor? bias=None, *, float eps=1e-05, ");
}

TORCH_LIBRARY_IMPL(trn, CompositeExplicitAutograd, library) {
  library.impl("gelu_mx", &gelu);
  library.impl("silu_mx", &silu);
  library.impl("rms_norm_mx", &rms_norm);
  library.impl("layer_norm_mx", &layer_norm);
}

}  // namespace trn
