// The fused steps of optimizers, `_fused_adamw_` and its like: the host's kernels share out each
// tensor among the threads, and wait for all of them before the next. Here each thread goes through
// its own part of all tensors without waiting.
#pragma once

#include "redispatch.h"

namespace trn {

bool is_fused_optimizer(const OpPlan& plan);

// Runs `op` on the host arguments on top of the stack. Values are those of the host's kernels, bit
// for bit: they are element-wise, and parts end where vectors do.
void call_fused_optimizer(const OpPlan& plan, const c10::OperatorHandle& op,
                          c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace trn
