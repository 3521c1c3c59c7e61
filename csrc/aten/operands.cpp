// See operands.h.
#include "operands.h"

namespace trn {

at::Tensor to_bf16_operand(const at::Tensor& host) {
  return host.scalar_type() == at::kFloat ? host.to(at::kBFloat16).to(at::kFloat) : host.to(at::kFloat);
}

at::Tensor round_result(at::Tensor host, at::ScalarType dtype) {
  return host.defined() && host.scalar_type() != dtype ? host.to(dtype) : host;
}

}  // namespace trn
