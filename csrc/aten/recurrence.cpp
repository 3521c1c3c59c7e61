// See recurrence.h. A step is a product and a cell, launched as operators, forward and backward.
// What is kept for the gradient are the cells' results; a gradient that is differentiated itself
// comes from the steps run again with gradients of their own.
#include "recurrence.h"

#include "fused_steps.h"
#include "product_roles.h"
#include "recurrent_steps.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_thnn_fused_gru_cell.h>
#include <ATen/ops/_thnn_fused_gru_cell_backward.h>
#include <ATen/ops/_thnn_fused_lstm_cell.h>
#include <ATen/ops/_thnn_fused_lstm_cell_backward_impl.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
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

// The steps in the order in which they run, or in which their gradients do.
class Order {
 public:
  Order(const Steps& steps, bool backward)
      : steps_(steps), last_first_(steps.reversed != backward) {
    offsets_.reserve(steps.rows.size());
    int64_t offset = 0;
    for (const int64_t rows : steps.rows) {
      offsets_.push_back(offset);
      offset += rows;
    }
  }
  size_t size() const { return steps_.rows.size(); }
  // The step that comes as number i.
  size_t at(size_t i) const { return last_first_ ? size() - 1 - i : i; }
  int64_t rows(size_t step) const { return steps_.rows[step]; }
  Tensor slice(const Tensor& all, size_t step) const {
    return all.slice(0, offsets_[step], offsets_[step] + rows(step));
  }

 private:
  const Steps& steps_;
  const bool last_first_;
  std::vector<int64_t> offsets_;
};

// What goes from step to step, one row for each sequence that the step has: a sequence begins with
// its row of `first`, and leaves its last row. Undefined: zeros.
class Carried {
 public:
  Carried(const Tensor& first, int64_t rows) : first_(first) {
    if (first.defined()) now = first.size(0) == rows ? first : first.slice(0, 0, rows);
  }

  void resize(int64_t rows) {
    if (!now.defined()) return;
    const int64_t before = now.size(0);
    if (rows < before) {
      left_.push_back(now.slice(0, rows, before));
      now = now.slice(0, 0, rows);
    } else if (rows > before) {
      const Tensor begun = first_.defined()
                               ? first_.slice(0, before, rows)
                               : at::zeros({rows - before, now.size(1)}, now.options());
      now = at::cat({now, begun});
    }
  }

  // The last rows of all sequences.
  Tensor last() {
    if (left_.empty() || !now.defined()) return now;
    left_.push_back(now);
    std::reverse(left_.begin(), left_.end());
    return at::cat(left_);
  }

  Tensor now;

 private:
  const Tensor first_;
  Tensors left_;
};

std::optional<Tensor> optional(const Tensor& x) {
  return x.defined() ? std::optional<Tensor>(x) : std::nullopt;
}

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

Tensors inputs_of(const Recurrence& layer) {
  Tensors inputs;
  for (const auto input : kRecurrentInputs)
    if ((layer.*input).defined()) inputs.push_back(layer.*input);
  return inputs;
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

// A layer of gradients.
Recurrence gradients_of_steps(const Recurrence& layer, const Kept& kept, const Tensor& out,
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
  Recurrence made{};
  if (wanted.has(&Recurrence::hx)) made.hx = h.last();
  if (wanted.has(&Recurrence::cx)) made.cx = c.last();
  const Tensor hidden = at::cat(of_gates.hidden);
  if (wanted.has(&Recurrence::gates))
    made.gates = layer.kind == CellKind::gru ? at::cat(of_gates.input) : hidden;
  if (wanted.has(&Recurrence::weight))
    made.weight = product_of(hidden.t(), hidden_inputs(layer, out), kOfActivations);
  const bool has_input_bias = wanted.has(&Recurrence::input_bias);
  if (wanted.has(&Recurrence::bias) || has_input_bias) made.bias = hidden.sum(0);
  if (has_input_bias) made.input_bias = made.bias;
  if (wanted.has(&Recurrence::projection)) {
    for (size_t step = 0; step < order.size(); ++step) {
      Tensor& grad = of_gates.projected[step];  // none where only the last cell state is used
      if (!grad.defined()) grad = zeros_like_rows(order.slice(out, step));
    }
    made.projection =
        product_of(at::cat(of_gates.projected).t(), at::cat(kept.projected), kOfActivations);
  }
  return made;
}

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
