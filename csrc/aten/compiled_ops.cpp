// The operators that compiled graphs call on the host in place of aten's matmul family: the
// precision policy in force when the graph was traced is an argument. The compiler puts them in;
// torch_trn_emu/compiler/apply_precision.py has their shapes.
#include "operands.h"
#include "products.h"

#include "numerics/mx.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string_view>

namespace trn {
namespace {

using at::Tensor;
using Str = std::string_view;

OperandFormat format_named(Str name) {
  static const std::vector<std::string> names = operand_format_names();
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return OperandFormat(i);
  }
  TORCH_CHECK_VALUE(false, "trn: no operand format \"", std::string(name), "\"");
}

Tensor product(const Tensor& a, const Tensor& b, Str a_format, Str b_format,
               at::ScalarType out_dtype, const std::optional<Tensor>& addend,
               const at::Scalar& beta, const at::Scalar& alpha) {
  return host_product(a, b, {format_named(a_format), format_named(b_format)}, addend, beta, alpha,
                      out_dtype);
}

// A matrix rounded as an operand that contracts along `dim`. bfloat16 holds every value of the
// formats, so that products of the result equal products that round it themselves.
Tensor round_operand(const Tensor& given, Str format, int64_t dim) {
  const auto rounding = operand_rounding(format_named(format), given.scalar_type());
  const Tensor x = given.resolve_neg();
  Tensor out = at::empty(x.sizes(), x.options().dtype(at::kBFloat16));
  if (rounding.kind != numerics::OperandRounding::Kind::mx) return out.copy_(x);
  const int axis = dim == -1 || dim == x.dim() - 1 ? 1 : 0;
  const int64_t rows = x.size(-2), cols = x.size(-1);
  const int64_t matrices = x.dim() == 3 ? x.size(0) : 1;
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < matrices && x.numel() > 0; ++i) {
    const int64_t step = x.dim() == 3 ? x.stride(0) * int64_t(x.element_size()) : 0;
    const numerics::MatrixView view{
        from + i * step, numerics_dtype(x.scalar_type()), rows, cols, x.stride(-2), x.stride(-1)};
    numerics::quantize_dequantize(view, axis, rounding.mx, numerics::DType::bfloat16,
                                  to + i * rows * cols * 2, cols);
  }
  return out;
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                   c10::SymIntArrayRef dilation, bool transposed,
                   c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  return host_convolution(input, weight, bias, stride, padding, dilation, transposed,
                          output_padding, std::move(groups), /*rounded=*/true);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight,
    at::OptionalSymIntArrayRef bias_sizes, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> output_mask) {
  return host_convolution_backward(grad_output, input, weight, bias_sizes, stride, padding,
                                   dilation, transposed, output_padding, std::move(groups),
                                   output_mask, /*rounded=*/true);
}

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                     bool is_causal, const std::optional<Tensor>& mask,
                                     std::optional<double> scale) {
  return host_attention(query, key, value, is_causal, mask, scale);
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const Tensor& query,
                                                      const Tensor& key, const Tensor& value,
                                                      const Tensor& out, const Tensor& logsumexp,
                                                      bool is_causal,
                                                      const std::optional<Tensor>& mask,
                                                      std::optional<double> scale) {
  return host_attention_backward(grad_out, query, key, value, out, logsumexp, is_causal, mask,
                                 scale);
}

Tensor stochastic_round(const Tensor& x, at::ScalarType dtype, int64_t seed, int64_t offset) {
  const bool known = dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kFloat8_e4m3fn ||
                     dtype == at::kFloat8_e5m2;
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat && known,
                   "stochastic_round takes float32 and gives bfloat16, float16, float8_e4m3fn or "
                   "float8_e5m2, got ",
                   x.scalar_type(), " to ", dtype);
  return host_stochastic_round(
      x.resolve_neg().contiguous(), dtype,
      {numerics::RoundingMode::stochastic, uint64_t(seed), uint64_t(offset)});
}

Tensor stochastic_round_meta(const Tensor& x, at::ScalarType dtype, int64_t, int64_t) {
  return at::empty(x.sizes(), x.options().dtype(dtype));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trn, library) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  const std::vector<at::Tag> any_strides{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  library.def(
      "product(Tensor a, Tensor b, str a_format, str b_format, ScalarType out_dtype, "
      "Tensor? addend=None, Scalar beta=1, Scalar alpha=1) -> Tensor",
      any_strides);
  library.def("round_operand(Tensor x, str format, int dim) -> Tensor", any_strides);
  library.def(
      "convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor",
      tags);
  library.def(
      "convolution_backward(Tensor grad_output, Tensor input, Tensor weight, SymInt[]? bias_sizes, "
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, "
      "SymInt[] output_padding, SymInt groups, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
      tags);
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, bool is_causal, Tensor? mask, "
      "float? scale) -> (Tensor, Tensor)",
      tags);
  library.def(
      "attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, "
      "Tensor logsumexp, bool is_causal, Tensor? mask, float? scale) -> (Tensor, Tensor, Tensor)",
      tags);
  library.def("stochastic_round(Tensor x, *, ScalarType dtype, int seed, int offset=0) -> Tensor",
              tags);
}

TORCH_LIBRARY_IMPL(trn, Meta, library) { library.impl("stochastic_round", &stochastic_round_meta); }

// Made of the host's convolution whatever the host is; the other operators of a CUDA host are bound
// by torch_trn_emu/triton/ops.py.
TORCH_LIBRARY_IMPL(trn, CUDA, library) {
  library.impl("convolution", &convolution);
  library.impl("convolution_backward", &convolution_backward);
}

TORCH_LIBRARY_IMPL(trn, CPU, library) {
  library.impl("stochastic_round", &stochastic_round);
  library.impl("product", &product);
  library.impl("round_operand", &round_operand);
  library.impl("convolution", &convolution);
  library.impl("convolution_backward", &convolution_backward);
  library.impl("attention", &attention);
  library.impl("attention_backward", &attention_backward);
}

}  // namespace trn
