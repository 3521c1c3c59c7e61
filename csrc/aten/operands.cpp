// See operands.h.
#include "operands.h"

#include "on_host.h"

#include "rounding_mode.h"

#include <ATen/ops/empty_like.h>

namespace trn {

numerics::DType numerics_dtype(at::ScalarType dtype) {
  if (dtype == at::kFloat) return numerics::DType::float32;
  return dtype == at::kBFloat16 ? numerics::DType::bfloat16 : numerics::DType::float16;
}

numerics::OperandRounding operand_rounding(OperandFormat format, at::ScalarType dtype) {
  using Kind = numerics::OperandRounding::Kind;
  numerics::OperandRounding rounding;
  switch (format) {
    case OperandFormat::as_given:
      break;
    case OperandFormat::bf16:
      rounding.kind = dtype == at::kFloat ? Kind::bfloat16 : Kind::none;
      break;
#define TRN_MX_FORMAT(name, element_name)                  \
  case OperandFormat::name:                                \
    rounding.kind = Kind::mx;                              \
    rounding.mx.element = numerics::Element::element_name; \
    break;
#include "../../torch_trn_emu/formats/formats.def"
  }
  return rounding;
}

at::Tensor to_bf16_operand(const at::Tensor& host) {
  if (host.scalar_type() != at::kFloat) return host.to(at::kFloat);
  if (!host.is_cpu() || !host.is_non_overlapping_and_dense() || host.is_neg())
    return host.to(at::kBFloat16).to(at::kFloat);
  at::Tensor rounded = at::empty_like(host);  // with the same strides, in one pass
  numerics::round_to(numerics::Format::bfloat16, host.const_data_ptr<float>(),
                     rounded.mutable_data_ptr<float>(), host.numel(), numerics::Overflow::special);
  return rounded;
}

void round_into(const at::Tensor& from, at::Tensor& to) {
  if (!stochastic_rounding()) {
    to.copy_(from);
    return;
  }
  const at::Tensor source = from.to(at::kFloat).contiguous();
  to.copy_(stochastic_on_host(source, to.scalar_type(), next_rounding()));
}

at::Tensor host_stochastic_round(const at::Tensor& x, at::ScalarType dtype,
                                 const numerics::Rounding& rounding) {
  at::Tensor y = at::empty_like(x, x.options().dtype(dtype));
  if (dtype == at::kBFloat16 || dtype == at::kHalf) {
    numerics::convert(numerics::DType::float32, x.const_data_ptr(), numerics_dtype(dtype),
                      y.mutable_data_ptr(), x.numel(), rounding);
  } else {
    const auto format =
        dtype == at::kFloat8_e5m2 ? numerics::Format::float8_e5m2 : numerics::Format::float8_e4m3fn;
    numerics::encode(format, x.const_data_ptr<float>(), static_cast<uint8_t*>(y.mutable_data_ptr()),
                     x.numel(), numerics::Overflow::saturate, rounding);
  }
  return y;
}

at::Tensor round_result(at::Tensor host, at::ScalarType dtype) {
  if (!host.defined() || host.scalar_type() == dtype) return host;
  at::Tensor rounded = at::empty_like(host, host.options().dtype(dtype));
  round_into(host, rounded);
  return rounded;
}

}  // namespace trn
