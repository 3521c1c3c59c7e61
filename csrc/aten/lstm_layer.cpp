// See lstm_layer.h. Two operators, so that modes see them and captured graphs hold them, and the
// autograd function over them. What an operator launches is found once for a signature, by running
// the steps. Checked on torch 2.13: aten/src/ATen/native/mkldnn/RNN.cpp.
#include "lstm_layer.h"

#include "alias.h"
#include "launches_of_steps.h"
#include "operator_named.h"
#include "policy.h"
#include "recurrent_steps.h"
#include "redispatch.h"
#include "runtime/host.h"
#include "typed.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mkldnn_rnn_layer_backward_ops.h>
#include <ATen/ops/mkldnn_rnn_layer_ops.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace trn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using LayerResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // out, h, c, workspace
using LayerGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// What a layer has, in the order in which autograd and the operators see it.
constexpr Tensor LstmLayer::* kLayerInputs[] = {
    &LstmLayer::x,           &LstmLayer::of_input, &LstmLayer::of_hidden, &LstmLayer::input_bias,
    &LstmLayer::hidden_bias, &LstmLayer::hx,       &LstmLayer::cx};
constexpr size_t kLayerInputCount = std::size(kLayerInputs);
using WantedInputs = std::array<bool, kLayerInputCount>;

MaybeTensor if_given(const Tensor& x) { return x.defined() ? MaybeTensor(x) : std::nullopt; }

// ---- what is launched ----

Recurrence steps_of(const LstmLayer& layer, const Tensor& gates) {
  const std::vector<int64_t> rows(size_t(layer.steps), layer.hx.size(0));
  return {CellKind::lstm,    {rows, layer.reversed}, gates, layer.hx, layer.cx, layer.of_hidden,
          layer.hidden_bias, layer.input_bias,       {}};
}

Recurred layer_by_steps(const LstmLayer& layer, Kept* kept) {
  const RoleScope by_weight(kByWeight);
  return run_steps(steps_of(layer, at::linear(layer.x, layer.of_input)), kept);
}

// Those of the inputs, from those of a layer's results, after its steps.
variable_list gradients_by_steps(const LstmLayer& layer, const Kept& kept, const Tensor& out,
                                 const Recurred& grads, const WantedInputs& wanted) {
  Wanted of_steps;
  of_steps[&Recurrence::gates] = wanted[0] || wanted[1];
  of_steps[&Recurrence::weight] = wanted[2];
  of_steps[&Recurrence::input_bias] = wanted[3];
  of_steps[&Recurrence::bias] = wanted[4];
  of_steps[&Recurrence::hx] = wanted[5];
  of_steps[&Recurrence::cx] = wanted[6];
  const Recurrence made = gradients_of_steps(steps_of(layer, {}), kept, out, grads, of_steps);
  Tensor of_x, of_weight;
  if (wanted[1]) of_weight = product_of(made.gates.t(), layer.x, kOfActivations);
  if (wanted[0]) of_x = product_of(made.gates, layer.of_input, kByWeight);
  return {of_x, of_weight, made.weight, made.input_bias, made.bias, made.hx, made.cx};
}

SignatureHash signature_of(const char* name, const LstmLayer& layer) {
  SignatureHash hash;
  hash.add(reinterpret_cast<uint64_t>(name) + uint64_t(current_policy()));
  hash.add(uint64_t(layer.hx.device().index()) << 1 | uint64_t(layer.reversed));
  hash.add(uint64_t(layer.steps));
  for (const auto input : kLayerInputs) hash.add(layer.*input);
  return hash;
}

// ---- the operators ----

constexpr const char* kForward = "trn::_lstm_layer";
constexpr const char* kBackward = "trn::_lstm_layer_backward";
constexpr int64_t kLstmMode = 2;  // ideep::rnn_kind

LstmLayer layer_of(const Tensor& x, const Tensor& of_input, const Tensor& of_hidden,
                   const MaybeTensor& input_bias, const MaybeTensor& hidden_bias, const Tensor& hx,
                   const Tensor& cx, int64_t steps, bool reversed) {
  return {
      x,  of_input, of_hidden, input_bias.value_or(Tensor()), hidden_bias.value_or(Tensor()), hx,
      cx, steps,    reversed};
}

// The kernels read contiguous elements.
LstmLayer on_host(HostCall& call, LstmLayer layer) {
  for (const auto input : kLayerInputs) {
    Tensor& x = layer.*input;
    if (x.defined()) x = call.alias(x).contiguous();
  }
  layer.x = layer.x.view({layer.steps, layer.hx.size(0), layer.x.size(1)});
  return layer;
}

// As [rows of all steps, features], as a fresh tensor of its own.
Tensor by_rows(Tensor x) {
  x.unsafeGetTensorImpl()->set_sizes_contiguous({x.size(0) * x.size(1), x.size(2)});
  return x;
}

LayerResults lstm_layer(const Tensor& x, const Tensor& of_input, const Tensor& of_hidden,
                        const MaybeTensor& input_bias, const MaybeTensor& hidden_bias,
                        const Tensor& hx, const Tensor& cx, int64_t steps, bool reversed,
                        bool train) {
  const LstmLayer layer =
      layer_of(x, of_input, of_hidden, input_bias, hidden_bias, hx, cx, steps, reversed);
  const BelowAutograd guard;
  const auto device = hx.device().index();
  const Programs programs =
      programs_of(signature_of(kForward, layer), [&] { layer_by_steps(layer, nullptr); });
  HostCall call(device, kForward);
  const LstmLayer here = on_host(call, layer);
  const bool biased = here.input_bias.defined();
  const at::AutoGradMode keeps_workspace(train);  // which the kernel asks
  auto [out, h, c, workspace] = at::_ops::mkldnn_rnn_layer::redispatch(
      host().keys, here.x, here.of_input, here.of_hidden, biased ? here.input_bias : here.of_input,
      biased ? here.hidden_bias : here.of_hidden, here.hx, here.cx, reversed, {}, kLstmMode,
      here.hx.size(1), /*num_layers=*/1, biased,
      /*bidirectional=*/false, /*batch_first=*/false, train);
  out = by_rows(std::move(out));
  launch_all(programs, device);
  return {call.adopt(std::move(out)), call.adopt(std::move(h)), call.adopt(std::move(c)),
          call.adopt(std::move(workspace))};
}

// Of what the operator launches: the steps' gradients on tensors of the same shapes.
void list_backward(const LstmLayer& layer, const Tensor& out, const Recurred& grads,
                   const WantedInputs& wanted) {
  const Tensor cell = at::empty(layer.cx.sizes(), layer.cx.options());
  const Tensor gates = at::empty({cell.size(0), 4 * cell.size(1)}, cell.options());
  const std::vector<Tensor> cells(size_t(layer.steps), cell), all(size_t(layer.steps), gates);
  gradients_by_steps(layer, {cells, cells, all, {}}, out, grads, wanted);
}

LayerGradients lstm_layer_backward(const Tensor& x, const Tensor& of_input, const Tensor& of_hidden,
                                   const MaybeTensor& input_bias, const MaybeTensor& hidden_bias,
                                   const Tensor& hx, const Tensor& cx, const Tensor& out,
                                   const Tensor& h, const Tensor& c, const Tensor& workspace,
                                   const MaybeTensor& grad_out, const MaybeTensor& grad_h,
                                   const MaybeTensor& grad_c, int64_t steps, bool reversed,
                                   WantedInputs wanted) {
  const LstmLayer layer =
      layer_of(x, of_input, of_hidden, input_bias, hidden_bias, hx, cx, steps, reversed);
  const Recurred grads{grad_out.value_or(Tensor()), grad_h.value_or(Tensor()),
                       grad_c.value_or(Tensor())};
  const BelowAutograd guard;
  const auto device = hx.device().index();
  SignatureHash signature = signature_of(kBackward, layer);
  for (const Tensor* grad : {&grads.out, &grads.h, &grads.c}) signature.add(*grad);
  for (const bool each : wanted) signature.add(uint64_t(each));
  const Programs programs =
      programs_of(signature, [&] { list_backward(layer, out, grads, wanted); });
  HostCall call(device, kBackward);
  const LstmLayer here = on_host(call, layer);
  const bool biased = here.input_bias.defined();
  const std::vector<int64_t> sizes{steps, hx.size(0), hx.size(1)};
  const auto by_steps = [&](const Tensor& rows) { return call.alias(rows).reshape(sizes); };
  auto [of_x, of_weight, of_recurrent, of_bias, of_other_bias, of_hx, of_cx] =
      at::_ops::mkldnn_rnn_layer_backward::redispatch(
          host().keys, here.x, here.of_input, here.of_hidden,
          biased ? here.input_bias : here.of_input, biased ? here.hidden_bias : here.of_hidden,
          here.hx, here.cx, by_steps(out), call.alias(h), call.alias(c),
          grads.out.defined() ? MaybeTensor(by_steps(grads.out)) : std::nullopt, call.alias(grad_h),
          call.alias(grad_c), reversed, kLstmMode, hx.size(1), /*num_layers=*/1, biased,
          /*train=*/true, /*bidirectional=*/false, {}, /*batch_first=*/false,
          call.alias(workspace));
  of_x = by_rows(std::move(of_x));
  launch_all(programs, device);
  const auto leaving = [&](size_t input, Tensor& grad) {
    return wanted[input] ? call.adopt(std::move(grad)) : Tensor();
  };
  return {leaving(0, of_x),    leaving(1, of_weight),     leaving(2, of_recurrent),
          leaving(3, of_bias), leaving(4, of_other_bias), leaving(5, of_hx),
          leaving(6, of_cx)};
}

const auto& forward_operator() {
  static const auto op = operator_named<decltype(lstm_layer)>(kForward);
  return op;
}

const auto& backward_operator() {
  static const auto op = operator_named<decltype(lstm_layer_backward)>(kBackward);
  return op;
}

LayerResults call_forward(const LstmLayer& layer, bool train) {
  return forward_operator().call(layer.x, layer.of_input, layer.of_hidden,
                                 if_given(layer.input_bias), if_given(layer.hidden_bias), layer.hx,
                                 layer.cx, layer.steps, layer.reversed, train);
}

// ---- autograd ----

// The same with a graph of their own: from the steps, run again.
variable_list differentiable(LstmLayer layer, const Recurred& grads, const WantedInputs& wanted) {
  variable_list inputs;
  for (size_t i = 0; i < kLayerInputCount; ++i) {
    Tensor& input = layer.*kLayerInputs[i];
    if (!wanted[i]) continue;
    input = input.view_as(input);  // one of its own, where two inputs are the same tensor
    inputs.push_back(input);
  }
  const variable_list found = gradients_with_graph(layer_by_steps(layer, nullptr), grads, inputs);
  variable_list all;
  for (size_t i = 0, next = 0; i < kLayerInputCount; ++i)
    all.push_back(wanted[i] ? found[next++] : Tensor());
  return all;
}

// Under another policy than the forward pass: its products round, after steps that did not.
variable_list after_steps_as_given(const LstmLayer& layer, const Recurred& grads,
                                   const WantedInputs& wanted) {
  struct AsGiven {
    int policy = exchange_thread_policy(int(Policy::fp32));
    bool paused = Ledger::pause(true);
    ~AsGiven() {
      Ledger::pause(paused);
      exchange_thread_policy(policy);
    }
  };
  Kept kept;
  const Recurred made = [&] {
    const AsGiven as_before;
    return layer_by_steps(layer, &kept);
  }();
  return gradients_by_steps(layer, kept, made.out, grads, wanted);
}

struct HostLayer : torch::autograd::Function<HostLayer> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* context, const LstmLayer& layer, at::TensorList) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [out, h, c, workspace] = call_forward(layer, /*train=*/true);
    variable_list saved{out, h, c, workspace};
    for (const auto input : kLayerInputs)
      if ((layer.*input).defined()) saved.push_back(layer.*input);
    context->saved_data["biased"] = layer.input_bias.defined();
    context->saved_data["steps"] = layer.steps;
    context->saved_data["reversed"] = layer.reversed;
    context->save_for_backward(std::move(saved));
    context->set_materialize_grads(false);
    return {out, h, c};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const bool biased = data["biased"].toBool();
    LstmLayer layer{};
    layer.steps = data["steps"].toInt();
    layer.reversed = data["reversed"].toBool();
    WantedInputs wanted{};
    size_t next = 4, variable = 0;
    for (size_t i = 0; i < kLayerInputCount; ++i) {
      const auto input = kLayerInputs[i];
      const bool bias = input == &LstmLayer::input_bias || input == &LstmLayer::hidden_bias;
      if (bias && !biased) continue;
      layer.*input = saved[next++];
      wanted[i] = context->needs_input_grad(variable++);
    }
    variable_list results(1);  // of the layer as such
    const Recurred of_results{grads[0], grads[1], grads[2]};
    if (!of_results.any_defined()) return variable_list(1 + variable);
    const variable_list made = gradients_of(layer, saved, of_results, wanted);
    for (size_t i = 0; i < kLayerInputCount; ++i)
      if ((layer.*kLayerInputs[i]).defined()) results.push_back(made[i]);
    return results;
  }

  static variable_list gradients_of(const LstmLayer& layer, const variable_list& saved,
                                    const Recurred& grads, const WantedInputs& wanted) {
    if (at::GradMode::is_enabled()) return differentiable(layer, grads, wanted);
    const at::AutoDispatchBelowADInplaceOrView below;
    if (!is_host_layer(layer)) return after_steps_as_given(layer, grads, wanted);
    const auto made = backward_operator().call(
        layer.x, layer.of_input, layer.of_hidden, if_given(layer.input_bias),
        if_given(layer.hidden_bias), layer.hx, layer.cx, saved[0], saved[1], saved[2], saved[3],
        if_given(grads.out), if_given(grads.h), if_given(grads.c), layer.steps, layer.reversed,
        wanted);
    variable_list found =
        std::apply([](const auto&... each) { return variable_list{each...}; }, made);
    if (found[3].defined() && wanted[4]) found[4] = found[3];  // one tensor, as after the steps
    return found;
  }
};

}  // namespace

bool is_host_layer(const LstmLayer& layer) {
  const auto is_plain_float = [](const Tensor& x) {
    return !x.defined() || (x.device().type() == kTrn && x.scalar_type() == at::kFloat &&
                            !x.key_set().has_any(c10::DispatchKeySet(
                                {c10::DispatchKey::Python, c10::DispatchKey::Functionalize})));
  };
  return !host().foreign && at::hasMKLDNN() && at::globalContext().userEnabledMkldnn() &&
         std::all_of(std::begin(kLayerInputs), std::end(kLayerInputs),
                     [&](const auto input) { return is_plain_float(layer.*input); }) &&
         operand_formats(current_policy(), MatmulClass::linear).as_given();
}

Recurred run_host_layer(const LstmLayer& layer) {
  variable_list inputs;
  for (const auto input : kLayerInputs)
    if ((layer.*input).defined()) inputs.push_back(layer.*input);
  const bool train = at::GradMode::is_enabled();
  const bool differentiates = train && std::any_of(inputs.begin(), inputs.end(),
                                                   [](const auto& x) { return x.requires_grad(); });
  if (!differentiates) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [out, h, c, workspace] = call_forward(layer, train);
    return {out, h, c};
  }
  const variable_list made = HostLayer::apply(layer, at::TensorList(inputs));
  return {made[0], made[1], made[2]};
}

TORCH_LIBRARY_FRAGMENT(trn, library) {
  const std::string layer =
      "Tensor x, Tensor of_input, Tensor of_hidden, Tensor? input_bias, Tensor? hidden_bias, "
      "Tensor hx, Tensor cx, ";
  library.def(("_lstm_layer(" + layer +
               "int steps, bool reversed, bool train) -> (Tensor, Tensor, Tensor, Tensor)")
                  .c_str());
  library.def(("_lstm_layer_backward(" + layer +
               "Tensor out, Tensor h, Tensor c, Tensor workspace, Tensor? grad_out, "
               "Tensor? grad_h, Tensor? grad_c, int steps, bool reversed, bool[7] wanted) -> "
               "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
                  .c_str());
}

TORCH_LIBRARY_IMPL(trn, PrivateUse1, library) {
  library.impl("_lstm_layer", &lstm_layer);
  library.impl("_lstm_layer_backward", &lstm_layer_backward);
}

}  // namespace trn
