// The steps of a recurrent layer and of its gradient as operators (recurrence.cpp), below autograd:
// what the device launches, whatever computes the values.
#pragma once

#include "product_roles.h"
#include "recurrence.h"

#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

namespace trn {

// The products by a layer's weights, and those of their gradients.
inline constexpr ProductRole kByWeight{MatmulClass::linear, 1};
inline constexpr ProductRole kOfActivations{MatmulClass::linear, -1};

// What the cells have made, by step: for an LSTM the states of its cell before and after, for an
// LSTM and a GRU the workspace, under a projection what is projected.
struct Kept {
  std::vector<at::Tensor> before, after, workspace, projected;
};

// What a layer has, in the order in which autograd sees it.
inline constexpr at::Tensor Recurrence::* kRecurrentInputs[] = {
    &Recurrence::gates, &Recurrence::hx,         &Recurrence::cx,        &Recurrence::weight,
    &Recurrence::bias,  &Recurrence::input_bias, &Recurrence::projection};

// Which gradients are asked for, in that order.
struct Wanted {
  std::array<bool, std::size(kRecurrentInputs)> inputs{};
  bool& operator[](at::Tensor Recurrence::* input) { return inputs[at(input)]; }
  bool has(at::Tensor Recurrence::* input) const { return inputs[at(input)]; }

 private:
  static size_t at(at::Tensor Recurrence::* input) {
    return size_t(std::find(std::begin(kRecurrentInputs), std::end(kRecurrentInputs), input) -
                  std::begin(kRecurrentInputs));
  }
};

Recurred run_steps(const Recurrence& layer, Kept* kept);

// What the steps' gradients give before the products over all of them: gradients of the gates
// [rows of all steps, gates x hidden], and of what is projected, by step.
struct StepGradients {
  at::Tensor hidden, input, hx, cx;
  std::vector<at::Tensor> projected;
};

// `out` are the hidden states of all steps. What is not wanted is undefined, but for `hidden`.
StepGradients gradients_step_by_step(const Recurrence& layer, const Kept& kept,
                                     const at::Tensor& out, const Recurred& grads,
                                     const Wanted& wanted);
Recurrence gradients_of_steps(const Recurrence& layer, const Kept& kept, const at::Tensor& out,
                              const Recurred& grads, const Wanted& wanted);

// The gradients of what the steps made with a graph, with a graph of their own.
torch::autograd::variable_list gradients_with_graph(const Recurred& made, const Recurred& grads,
                                                    const torch::autograd::variable_list& inputs);

}  // namespace trn
