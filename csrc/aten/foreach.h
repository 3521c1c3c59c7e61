// The _foreach_ operators: the list is shared out among the host's threads, which the host's own
// kernels, going from tensor to tensor, do not do.
#pragma once

#include "redispatch.h"

namespace trn {

bool is_foreach(const OpPlan& plan);

// Runs `op` on the host arguments on top of the stack, each thread on a stretch of the lists.
// Values are those of the host's kernels: only who computes them differs.
void call_foreach(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                  torch::jit::Stack* stack);

}  // namespace trn
