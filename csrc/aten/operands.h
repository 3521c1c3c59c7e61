// Operands of the Tensor engine as host tensors: exactly representable float32 values.
#pragma once

#include <ATen/core/Tensor.h>

namespace trn {

// The formats that the precision policy applies to. Others are not native to the Tensor engine and are
// computed exactly as the host does.
inline bool takes_policy(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
}

// [*] float32, bfloat16 or float16 -> float32: float32 rounded to bfloat16, 16-bit formats widened.
at::Tensor to_bf16_operand(const at::Tensor& host);

// The one rounding of a float32 result. Undefined tensors pass.
at::Tensor round_result(at::Tensor host, at::ScalarType dtype);

}  // namespace trn
