// Stochastic rounding of the host kernels' 16-bit results.
#pragma once

#include "redispatch.h"

namespace trn {

// Runs `op` on the host arguments on top of the stack, its results rounded stochastically: the
// host's kernel runs for the shapes and formats of the results, then once more in float32 for their
// values. Results of operators that draw random numbers, and constants, stay rounded to nearest
// even.
void call_rounding_stochastically(const OpPlan& plan, const c10::OperatorHandle& op,
                                  c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace trn
