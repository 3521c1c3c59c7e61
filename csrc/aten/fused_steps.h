// The steps of an LSTM or a GRU under a policy that rounds, and the gradients of an LSTM's, where
// product and cell of a step share one loop: each thread has hidden units of its own, and waits for
// others once a step.
// Values and launches are those of the steps as operators (recurrent_steps.h), which run wherever
// something is to see them.
#pragma once

#include "recurrent_steps.h"

#include <optional>

namespace trn {

// As run_steps, below autograd, or nothing where the steps have to be operators.
std::optional<Recurred> run_fused_steps(const Recurrence& layer, Kept* kept);

// As gradients_step_by_step, or nothing.
std::optional<StepGradients> fused_step_gradients(const Recurrence& layer, const Kept& kept,
                                                  const at::Tensor& out, const Recurred& grads,
                                                  const Wanted& wanted);

}  // namespace trn
