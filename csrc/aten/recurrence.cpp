// See recurrence.h. A step is a product and a cell, launched as operators, forward and backward.
// What is kept for the gradient are the cells' results; a gradient that is differentiated itself
// comes from the steps run again with gradients of their own.
#include "recurrence.h"

#include "fused_steps.h"
#include "product_roles.h"
#include "recurrent_steps.h"
#include "steps_in_order.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_thnn_fused_gru_cell.h>
#include <ATen/ops/_thnn_fused_lstm_cell.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/tanh.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>
#include <optional>

namespace trn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Tensors = std::vector<Tensor>;

Tensor linear(const Tensor& x, const Tensor& weight_t, const Tensor& bias) {
  return bias.defined() ? at::addmm(bias, x, weight_t) : at::mm(x, weight_t);
}

// The transposed weight that the steps multiply by. MKL packs what lies across again at every
// product, for up to half of its time, so an LSTM of many steps under fp32 turns it once. Sums may
// be taken in another order: layers whose sums are in the CPU's keep to it.
Tensor weight_of_steps(const Recurrence& layer) {
  constexpr int64_t worth_steps = 8, worth_elements = 1 << 15;
  const Tensor weight_t = layer.weight.t();
  const bool turns = layer.kind == CellKind::lstm && !layer.projection.defined() &&
                     int64_t(layer.steps.rows.size()) >= worth_steps &&
                     weight_t.numel() >= worth_elements && weight_t.scalar_type() == at::kFloat &&
                     operand_formats(current_policy(), MatmulClass::linear).as_given();
  return turns ? at::clone(weight_t, at::MemoryFormat::Contiguous) : weight_t;
}

}  // namespace

Recurred run_steps(const Recurrence& layer, Kept* kept) {
  const RoleScope by_weight(kByWeight);
  const Order order(layer.steps, false);
  const int64_t begin = order.rows(order.at(0));
  Carried h(layer.hx, begin), c(layer.cx, begin);
  const bool lstm = layer.kind == CellKind::lstm;
  const Tensor weight_t = weight_of_steps(layer);
  const Tensor projection_t = layer.projection.defined() ? layer.projection.t() : Tensor();
  // torch finds no shapes of an LSTM's cell without biases: on meta there are some.
  const bool lends = lstm && layer.gates.is_meta() && !layer.bias.defined();
  const Tensor lent = lends ? at::empty({layer.gates.size(1)}, layer.gates.options()) : Tensor();
  const auto input_bias = optional(lends ? lent : layer.input_bias);
  const auto bias = optional(lends ? lent : layer.bias);
  Tensors out(order.size());
  if (kept != nullptr) {
    for (Tensors* each : {&kept->before, &kept->after, &kept->workspace, &kept->projected})
      each->resize(order.size());
  }
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t step = order.at(i);
    h.resize(order.rows(step));
    c.resize(order.rows(step));
    const Tensor gates = order.slice(layer.gates, step);
    Tensor of_hidden = linear(h.now, weight_t, lstm ? Tensor() : layer.bias);
    if (lstm) {
      auto [hy, cy, workspace] =
          at::_thnn_fused_lstm_cell(gates, of_hidden, c.now, input_bias, bias);
      if (kept != nullptr) {
        kept->before[step] = c.now;
        kept->after[step] = cy;
        kept->workspace[step] = workspace;
        if (projection_t.defined()) kept->projected[step] = hy;
      }
      h.now = projection_t.defined() ? at::mm(hy, projection_t) : hy;
      c.now = cy;
    } else if (layer.kind == CellKind::gru) {
      auto [hy, workspace] = at::_thnn_fused_gru_cell(gates, of_hidden, h.now);
      if (kept != nullptr) kept->workspace[step] = workspace;
      h.now = hy;
    } else {
      of_hidden.add_(gates);
      h.now = layer.kind == CellKind::rnn_tanh ? at::tanh(of_hidden) : at::relu(of_hidden);
    }
    out[step] = h.now;
  }
  return {at::cat(out), h.last(), c.last()};
}

namespace {

Tensors inputs_of(const Recurrence& layer) {
  Tensors inputs;
  for (const auto input : kRecurrentInputs)
    if ((layer.*input).defined()) inputs.push_back(layer.*input);
  return inputs;
}

}  // namespace

variable_list gradients_with_graph(const Recurred& made, const Recurred& grads,
                                   const variable_list& inputs) {
  variable_list outputs, of_outputs;
  for (const auto& [output, grad] :
       {std::pair{made.out, grads.out}, std::pair{made.h, grads.h}, std::pair{made.c, grads.c}}) {
    if (!grad.defined()) continue;
    outputs.push_back(output);
    of_outputs.push_back(grad);
  }
  return torch::autograd::grad(outputs, inputs, of_outputs, /*retain_graph=*/true,
                               /*create_graph=*/true, /*allow_unused=*/true);
}

namespace {

// The same gradients with a graph: the steps run again, with the gradients of their operators.
variable_list differentiable_gradients(const Recurrence& layer, const Recurred& grads,
                                       const Wanted& wanted) {
  Recurrence again = layer;
  variable_list inputs;
  for (size_t i = 0; i < std::size(kRecurrentInputs); ++i) {
    Tensor& input = again.*kRecurrentInputs[i];
    if (!wanted.inputs[i]) continue;
    input = input.view_as(input);  // one of its own, where two inputs are the same tensor
    inputs.push_back(input);
  }
  return gradients_with_graph(run_steps(again, nullptr), grads, inputs);
}

// Below autograd.
Recurred without_graph(const Recurrence& layer, Kept* kept) {
  const auto fused = run_fused_steps(layer, kept);
  return fused ? *fused : run_steps(layer, kept);
}

struct RecurrentLayer : torch::autograd::Function<RecurrentLayer> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* context, const Recurrence& layer, at::TensorList) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Kept kept;
    const Recurred made = without_graph(layer, &kept);
    int64_t has = 0;
    for (size_t i = 0; i < std::size(kRecurrentInputs); ++i)
      has |= int64_t((layer.*kRecurrentInputs[i]).defined()) << i;
    context->saved_data["kind"] = int64_t(layer.kind);
    context->saved_data["rows"] = layer.steps.rows;
    context->saved_data["reversed"] = layer.steps.reversed;
    context->saved_data["has"] = has;
    variable_list saved = inputs_of(layer);
    saved.push_back(made.out);
    for (const Tensors* each : {&kept.before, &kept.after, &kept.workspace, &kept.projected})
      if (!each->empty() && each->front().defined())
        saved.insert(saved.end(), each->begin(), each->end());
    context->save_for_backward(std::move(saved));
    context->set_materialize_grads(false);
    variable_list out{made.out, made.h};
    if (made.c.defined()) out.push_back(made.c);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    size_t next = 0, variable = 0;
    auto& data = context->saved_data;
    Recurrence layer{};
    layer.kind = CellKind(data["kind"].toInt());
    layer.steps = {data["rows"].toIntVector(), data["reversed"].toBool()};
    Wanted wanted;
    for (size_t i = 0; i < std::size(kRecurrentInputs); ++i) {
      if ((data["has"].toInt() >> i & 1) == 0) continue;
      layer.*kRecurrentInputs[i] = saved[next++];
      wanted.inputs[i] = context->needs_input_grad(variable++);
    }
    const Tensor out = saved[next++];
    Kept kept;
    const auto take = [&](Tensors& each) {
      const size_t steps = layer.steps.rows.size();
      each.assign(saved.begin() + int64_t(next), saved.begin() + int64_t(next + steps));
      next += steps;
    };
    const bool lstm = layer.kind == CellKind::lstm;
    if (lstm) take(kept.before);
    if (lstm) take(kept.after);
    if (lstm || layer.kind == CellKind::gru) take(kept.workspace);
    if (layer.projection.defined()) take(kept.projected);
    const Recurred of_results{grads[0], grads[1], lstm ? grads[2] : Tensor()};

    variable_list results(1);  // of the layer as such
    if (!of_results.any_defined()) return variable_list(1 + variable);
    if (at::GradMode::is_enabled()) {
      const variable_list made = differentiable_gradients(layer, of_results, wanted);
      size_t at = 0;
      for (size_t i = 0; i < std::size(kRecurrentInputs); ++i)
        if ((layer.*kRecurrentInputs[i]).defined())
          results.push_back(wanted.inputs[i] ? made[at++] : Tensor());
      return results;
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    const Recurrence made = gradients_of_steps(layer, kept, out, of_results, wanted);
    for (const auto input : kRecurrentInputs)
      if ((layer.*input).defined()) results.push_back(made.*input);
    return results;
  }
};

}  // namespace

Recurred recur(const Recurrence& layer) {
  const Tensors inputs = inputs_of(layer);
  const bool differentiates =
      at::GradMode::is_enabled() &&
      std::any_of(inputs.begin(), inputs.end(), [](const Tensor& x) { return x.requires_grad(); });
  if (!differentiates) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return without_graph(layer, nullptr);
  }
  const variable_list made = RecurrentLayer::apply(layer, at::TensorList(inputs));
  return {made[0], made[1], made.size() > 2 ? made[2] : Tensor()};
}

}  // namespace trn
