// Tensor-engine operands and results: between host tensors and the descriptors of csrc/numerics.
#pragma once

#include "numerics/gemm.h"
#include "policy.h"

#include <ATen/core/Tensor.h>

namespace trn {

// The formats that the precision policy applies to. Others are not native to the Tensor engine and
// are computed exactly as the host does.
inline bool takes_policy(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
}

numerics::DType numerics_dtype(at::ScalarType dtype);  // of a type that takes the policy
numerics::OperandRounding operand_rounding(OperandFormat format, at::ScalarType dtype);

// [*] float32, bfloat16 or float16 -> float32: float32 rounded to bfloat16, 16-bit formats widened.
at::Tensor to_bf16_operand(const at::Tensor& host);

// The one rounding of a float32 result. Undefined tensors pass.
at::Tensor round_result(at::Tensor host, at::ScalarType dtype);

// float32, contiguous -> bfloat16, float16 or an 8-bit format (which saturates).
at::Tensor host_stochastic_round(const at::Tensor& x, at::ScalarType dtype,
                                 const numerics::Rounding& rounding);

// Rounds `from` (float32) into `to` (bfloat16 or float16, any strides) as the engines do.
void round_into(const at::Tensor& from, at::Tensor& to);

}  // namespace trn
