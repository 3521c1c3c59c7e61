// Gradients of torch.ops.trn, those of MX training: quantisation passes them straight through; a
// product's operands are quantised again along the contraction axis of each backward product.
#include "operator_named.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string_view>

namespace trn {
namespace {

using at::Tensor;
using Str = std::string_view;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct StraightThrough : torch::autograd::Function<StraightThrough> {
  static Tensor forward(AutogradContext*, const Tensor& x, int64_t dim, std::string element,
                        std::string rule, std::string rounding, std::string grouping,
                        int64_t seed) {
    static const auto op =
        operator_named<Tensor(const Tensor&, int64_t, Str, Str, Str, Str, int64_t)>(
            "trn::quantize_dequantize_mx");
    at::AutoDispatchBelowADInplaceOrView below;
    return op.call(x, dim, element, rule, rounding, grouping, seed);
  }
  static variable_list backward(AutogradContext*, variable_list grads) {
    return {grads[0], {}, {}, {}, {}, {}, {}};
  }
};

Tensor quantize_dequantize_autograd(const Tensor& x, int64_t dim, Str element, Str rule,
                                    Str rounding, Str grouping, int64_t seed) {
  return StraightThrough::apply(x, dim, std::string(element), std::string(rule),
                                std::string(rounding), std::string(grouping), seed);
}

using MmSignature = Tensor(const Tensor&, const Tensor&, Str, Str, Str, Str,
                           std::optional<at::ScalarType>);

struct MxMm : torch::autograd::Function<MxMm> {
  static Tensor forward(AutogradContext* context, const Tensor& a, const Tensor& b,
                        std::string a_element, std::string b_element, std::string rule,
                        std::string grouping, std::optional<at::ScalarType> out_dtype) {
    context->save_for_backward({a, b});
    context->saved_data["names"] = std::vector<std::string>{a_element, b_element, rule, grouping};
    at::AutoDispatchBelowADInplaceOrView below;
    return operator_named<MmSignature>("trn::mx_mm")
        .call(a, b, a_element, b_element, rule, grouping, out_dtype);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto names = context->saved_data["names"].to<std::vector<std::string>>();
    const auto op = operator_named<MmSignature>("trn::mx_mm");
    Tensor grad_a, grad_b;
    if (context->needs_input_grad(0)) {
      grad_a = op.call(grads[0], saved[1].mT(), names[0], names[1], names[2], names[3],
                       saved[0].scalar_type());
    }
    if (context->needs_input_grad(1)) {
      grad_b = op.call(saved[0].mT(), grads[0], names[0], names[1], names[2], names[3],
                       saved[1].scalar_type());
    }
    return {grad_a, grad_b, {}, {}, {}, {}, {}};
  }
};

Tensor mx_mm_autograd(const Tensor& a, const Tensor& b, Str a_element, Str b_element, Str rule,
                      Str grouping, std::optional<at::ScalarType> out_dtype) {
  return MxMm::apply(a, b, std::string(a_element), std::string(b_element), std::string(rule),
                     std::string(grouping), out_dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(trn, Autograd, library) {
  library.impl("quantize_dequantize_mx", &quantize_dequantize_autograd);
  library.impl("mx_mm", &mx_mm_autograd);
}

}  // namespace trn
