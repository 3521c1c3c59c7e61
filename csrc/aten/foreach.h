// The _foreach_ operators: the list is shared out among the host's threads, which the host's own
// kernels, going from tensor to tensor, do not do.
#pragma once

#include "redispatch.h"

#include <vector>

namespace trn {

bool is_foreach(const OpPlan& plan);

// Runs `op` on the host arguments on top of the stack, each thread on a stretch of the lists.
// Values are those of the host's kernels: only who computes them differs.
void call_foreach(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                  torch::jit::Stack* stack);

// Of lists of tensors: those that share memory must be worked on in the list's order.
bool share_memory(const c10::List<at::Tensor>& tensors);

// Runs `op` once for each of the stacks, each on a thread. Results are on the stacks.
void call_on_threads(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                     std::vector<torch::jit::Stack>& calls);

}  // namespace trn
