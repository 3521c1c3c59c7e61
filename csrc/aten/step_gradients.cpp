// The gradients of a recurrent layer's steps (recurrent_steps.h), below autograd.
#include "fused_steps.h"
#include "product_roles.h"
#include "recurrent_steps.h"
#include "steps_in_order.h"

#include <ATen/ops/_thnn_fused_gru_cell_backward.h>
#include <ATen/ops/_thnn_fused_lstm_cell_backward_impl.h>
#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <tuple>

namespace trn {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// The hidden states that the steps begin with [rows of all steps, width], in the order of time.
Tensor hidden_inputs(const Recurrence& layer, const Tensor& out) {
  const Order order(layer.steps, false);
  Tensors pieces;
  std::vector<Tensors> of_step(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t step = order.at(i);
    const int64_t rows = order.rows(step);
    int64_t had = 0;
    if (i > 0) {
      had = std::min(rows, order.rows(order.at(i - 1)));
      of_step[step].push_back(order.slice(out, order.at(i - 1)).slice(0, 0, had));
    }
    if (had < rows) of_step[step].push_back(layer.hx.slice(0, had, rows));
  }
  for (Tensors& each : of_step) pieces.insert(pieces.end(), each.begin(), each.end());
  return at::cat(pieces);
}

// a + b, where either may be undefined.
Tensor sum(const Tensor& a, const Tensor& b) {
  if (!a.defined()) return b;
  return b.defined() ? at::add(a, b) : a;
}

// The gradients of all steps' gates.
struct OfGates {
  Tensors input, hidden, projected;
  explicit OfGates(size_t steps) : input(steps), hidden(steps), projected(steps) {}
};

// One step back: from the gradients of its results to those of what it began with.
void step_back(const Recurrence& layer, const Kept& kept, const Tensor& h, size_t step,
               bool goes_on, Tensor& grad_h, Tensor& grad_c, OfGates& of_gates) {
  Tensor through;  // past the hidden product
  if (layer.kind == CellKind::lstm) {
    if (layer.projection.defined() && grad_h.defined()) {
      of_gates.projected[step] = grad_h;
      grad_h = product_of(grad_h, layer.projection, kByWeight);
    }
    std::tie(of_gates.hidden[step], grad_c, std::ignore) = at::_thnn_fused_lstm_cell_backward_impl(
        optional(grad_h), optional(grad_c), kept.before[step], kept.after[step],
        kept.workspace[step], false);
  } else if (layer.kind == CellKind::gru) {
    std::tie(of_gates.input[step], of_gates.hidden[step], through, std::ignore, std::ignore) =
        at::_thnn_fused_gru_cell_backward(grad_h, kept.workspace[step], false);
  } else {
    of_gates.hidden[step] = layer.kind == CellKind::rnn_tanh ? at::tanh_backward(grad_h, h)
                                                             : at::threshold_backward(grad_h, h, 0);
  }
  if (goes_on) grad_h = sum(product_of(of_gates.hidden[step], layer.weight, kByWeight), through);
}

Tensor zeros_like_rows(const Tensor& rows) { return at::zeros(rows.sizes(), rows.options()); }

}  // namespace

StepGradients gradients_step_by_step(const Recurrence& layer, const Kept& kept, const Tensor& out,
                                     const Recurred& grads, const Wanted& wanted) {
  const Order order(layer.steps, true);
  const int64_t begin = order.rows(order.at(0));
  Carried h(grads.h, begin), c(grads.c, begin);
  OfGates of_gates(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t step = order.at(i);
    h.resize(order.rows(step));
    c.resize(order.rows(step));
    if (grads.out.defined()) h.now = sum(order.slice(grads.out, step), h.now);
    if (!h.now.defined() && !c.now.defined()) h.now = zeros_like_rows(order.slice(out, step));
    const bool goes_on = i + 1 < order.size() || wanted.has(&Recurrence::hx);
    step_back(layer, kept, order.slice(out, step), step, goes_on, h.now, c.now, of_gates);
  }
  StepGradients made;
  if (wanted.has(&Recurrence::hx)) made.hx = h.last();
  if (wanted.has(&Recurrence::cx)) made.cx = c.last();
  made.hidden = at::cat(of_gates.hidden);
  if (wanted.has(&Recurrence::gates))
    made.input = layer.kind == CellKind::gru ? at::cat(of_gates.input) : made.hidden;
  made.projected = std::move(of_gates.projected);
  return made;
}

// A layer of gradients.
Recurrence gradients_of_steps(const Recurrence& layer, const Kept& kept, const Tensor& out,
                              const Recurred& grads, const Wanted& wanted) {
  auto fused = fused_step_gradients(layer, kept, out, grads, wanted);
  StepGradients steps =
      fused ? std::move(*fused) : gradients_step_by_step(layer, kept, out, grads, wanted);
  Recurrence made{};
  made.hx = steps.hx;
  made.cx = steps.cx;
  made.gates = steps.input;
  if (wanted.has(&Recurrence::weight))
    made.weight = product_of(steps.hidden.t(), hidden_inputs(layer, out), kOfActivations);
  const bool has_input_bias = wanted.has(&Recurrence::input_bias);
  if (wanted.has(&Recurrence::bias) || has_input_bias) made.bias = steps.hidden.sum(0);
  if (has_input_bias) made.input_bias = made.bias;
  if (wanted.has(&Recurrence::projection)) {
    const Order order(layer.steps, true);
    for (size_t step = 0; step < order.size(); ++step) {
      Tensor& grad = steps.projected[step];  // none where only the last cell state is used
      if (!grad.defined()) grad = zeros_like_rows(order.slice(out, step));
    }
    made.projection =
        product_of(at::cat(steps.projected).t(), at::cat(kept.projected), kOfActivations);
  }
  return made;
}

}  // namespace trn
