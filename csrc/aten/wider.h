// Formats that a host kernel lacks and CUDA's has: the operator is computed in a wider format and
// its results are cast back once. To add an operator, add a row to kWiderRows in wider.cpp.
#pragma once

#include "redispatch.h"

#include <string_view>

namespace trn {

struct WiderRow;

// The row of "aten::exp.out", or null.
const WiderRow* wider_row(std::string_view name);

// Runs `op` on the host arguments on top of the stack as its row says, written arguments included.
// False, with the stack as it was, when the formats of these arguments are not in the row.
bool call_wider(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                torch::jit::Stack* stack);

// What a tensor of `narrow` is computed in.
at::ScalarType wider(at::ScalarType narrow);
// The format of a result that came out as `made`, of an operator whose operands promote to
// `narrow`.
at::ScalarType cast_back(at::ScalarType made, at::ScalarType narrow);

// Operators of several others that check formats by themselves: the FFTs of float16, convolution
// and nanmean of complex32. For the dense key and its autograd key.
void register_wider_composites(torch::Library& library);

}  // namespace trn
