// LSTM, GRU and RNN as operators of all their layers: one product makes the gates' input parts of
// all steps of a layer, as on the CPU, and recurrence.h goes through the steps. torch's own would
// multiply at every step on an accelerator; it still takes what is laid out or transformed in a way
// that these do not, and says what is wrong with arguments.
#include "lstm_layer.h"
#include "observers.h"
#include "product_roles.h"
#include "recurrence.h"
#include "runtime/host.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/TensorBody.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gru_native.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/lstm_native.h>
#include <ATen/ops/native_dropout.h>
#include <ATen/ops/rnn_relu_native.h>
#include <ATen/ops/rnn_tanh_native.h>
#include <ATen/ops/stack.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace trn {
namespace {

using at::Tensor;
using at::TensorList;
using c10::DispatchKey;
using Tensors = std::vector<Tensor>;

int64_t gates_of(CellKind kind) {
  return kind == CellKind::lstm ? 4 : kind == CellKind::gru ? 3 : 1;
}

// One call of an operator, with the arguments that its overloads share.
struct RecurrentCall {
  CellKind kind;
  Tensor input;  // [steps, batch, features], or [rows of all steps, features]
  Tensor hx, cx;
  Tensors parameters;
  bool has_biases;
  int64_t layers;
  double dropout;
  bool train, bidirectional;
  bool is_packed = false;

  int64_t directions() const { return bidirectional ? 2 : 1; }
  bool has_projections() const { return cx.defined() && cx.size(2) != hx.size(2); }
  int64_t parameters_each() const { return 2 + (has_biases ? 2 : 0) + (has_projections() ? 1 : 0); }

  Tensors tensors() const {
    Tensors all{input, hx};
    if (cx.defined()) all.push_back(cx);
    all.insert(all.end(), parameters.begin(), parameters.end());
    return all;
  }
};

struct Results {
  Tensor out, h, c;
};

// The parameters of one direction of one layer. Without biases, or a projection: undefined.
struct Parameters {
  Tensor of_input, of_hidden, input_bias, hidden_bias, projection;

  Parameters(const RecurrentCall& call, int64_t direction) {
    const Tensor* at = call.parameters.data() + direction * call.parameters_each();
    of_input = *at++;
    of_hidden = *at++;
    if (call.has_biases) {
      input_bias = *at++;
      hidden_bias = *at++;
    }
    if (call.has_projections()) projection = *at;
  }
};

// ---- what is left to torch ----

// Under a transform of torch.func, whose wrappers a node of C++ does not see through.
bool is_transformed() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  return included.has(DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         included.has(DispatchKey::FuncTorchDynamicLayerBackMode);
}

bool is_plain(const Tensor& x, const Tensor& like) {
  return x.defined() && x.layout() == at::kStrided && x.device() == like.device() &&
         x.scalar_type() == like.scalar_type() && !x.is_nested() &&
         !x.unsafeGetTensorImpl()->has_symbolic_sizes_strides() &&
         !torch::autograd::isFwGradDefined(x);
}

bool has_size(const Tensor& x, at::IntArrayRef sizes) { return !x.defined() || x.sizes() == sizes; }

bool fits(const RecurrentCall& call, int64_t batch) {
  const Tensor& state = call.cx.defined() ? call.cx : call.hx;
  if (call.hx.dim() != 3 || state.dim() != 3 || call.layers < 1) return false;
  const int64_t width = call.hx.size(2), hidden = state.size(2), directions = call.directions();
  const int64_t all = call.layers * directions;
  if (!has_size(call.hx, {all, batch, width}) || !has_size(state, {all, batch, hidden}) ||
      int64_t(call.parameters.size()) != all * call.parameters_each() || batch < 1 || width < 1)
    return false;
  for (int64_t i = 0; i < all; ++i) {
    const Parameters p(call, i);
    const int64_t gates = gates_of(call.kind) * hidden;
    const int64_t features = i < directions ? call.input.size(-1) : directions * width;
    if (!has_size(p.of_input, {gates, features}) || !has_size(p.of_hidden, {gates, width}) ||
        !has_size(p.input_bias, {gates}) || !has_size(p.hidden_bias, {gates}) ||
        !has_size(p.projection, {width, hidden}))
      return false;
  }
  return true;
}

bool takes(const RecurrentCall& call) {
  if (is_transformed() || !call.input.defined()) return false;
  const Tensors all = call.tensors();
  return std::all_of(all.begin(), all.end(),
                     [&](const Tensor& x) { return is_plain(x, call.input); }) &&
         at::isFloatingType(call.input.scalar_type()) && call.input.numel() > 0;
}

// Under autocast in its format, as its operators would be.
bool is_cast(const Tensor& x) {
  return at::autocast::is_autocast_enabled(at::kPrivateUse1) &&
         !c10::impl::tls_is_dispatch_key_excluded(DispatchKey::AutocastPrivateUse1) &&
         x.defined() && x.is_floating_point() && x.scalar_type() != at::kDouble;
}

RecurrentCall cast(RecurrentCall call) {
  const auto dtype = at::autocast::get_autocast_dtype(at::kPrivateUse1);
  const auto each = [&](Tensor& x) {
    if (is_cast(x)) x = at::autocast::cached_cast(dtype, x, at::kPrivateUse1);
  };
  each(call.input);
  each(call.hx);
  each(call.cx);
  for (Tensor& parameter : call.parameters) each(parameter);
  return call;
}

// ---- all layers ----

ObserverTest observer_test = nullptr;

// Modes that trace see the steps too: their graphs and shapes are made of those.
bool is_observed() {
  using Modes = c10::impl::TorchDispatchModeTLS;
  using Key = c10::impl::TorchDispatchModeKey;
  if (!Modes::any_modes_set()) return false;
  for (const Key key : {Key::FAKE, Key::PROXY, Key::FUNCTIONAL})
    if (Modes::get_mode(key).has_value()) return true;
  return observer_test != nullptr && observer_test();
}

// One direction of one layer.
Recurred run_direction(const RecurrentCall& call, const Tensor& x, const std::vector<int64_t>& rows,
                       int64_t i) {
  const Parameters p(call, i);
  const bool reversed = i % call.directions() == 1;
  const Tensor hx = call.hx.select(0, i), cx = call.cx.defined() ? call.cx.select(0, i) : Tensor();
  if (call.kind == CellKind::lstm && !call.is_packed && !p.projection.defined()) {
    const LstmLayer layer{x,  p.of_input, p.of_hidden,          p.input_bias, p.hidden_bias,
                          hx, cx,         int64_t(rows.size()), reversed};
    if (is_host_layer(layer) && !is_observed()) return run_host_layer(layer);
  }
  // The fused cell of an LSTM adds the biases: torch makes no fake tensors of one without.
  const bool adds = p.input_bias.defined() && call.kind != CellKind::lstm;
  return recur({call.kind,
                {rows, reversed},
                at::linear(x, p.of_input, adds ? std::optional(p.input_bias) : std::nullopt),
                hx,
                cx,
                p.of_hidden,
                p.hidden_bias,
                adds ? Tensor() : p.input_bias,
                p.projection});
}

// input [rows of all steps, features].
Results run_layers(const RecurrentCall& call, Tensor x, const std::vector<int64_t>& rows) {
  const RoleScope by_weight({MatmulClass::linear, 1});
  Tensors h, c;
  for (int64_t layer = 0; layer < call.layers; ++layer) {
    Tensors out;
    for (int64_t direction = 0; direction < call.directions(); ++direction) {
      const int64_t i = layer * call.directions() + direction;
      const Recurred made = run_direction(call, x, rows, i);
      out.push_back(made.out);
      h.push_back(made.h);
      if (made.c.defined()) c.push_back(made.c);
    }
    x = out.size() == 1 ? out[0] : at::cat(out, -1);
    if (call.dropout == 0 || !call.train || layer + 1 == call.layers) continue;
    x = x.is_meta() && call.dropout < 1  // one launch, as on trn
            ? std::get<0>(at::native_dropout(x, call.dropout, /*train=*/true))
            : at::dropout(x, call.dropout, /*train=*/true);
  }
  return {x, at::stack(h), c.empty() ? Tensor() : at::stack(c)};
}

// Of sequences of one length, or nothing where torch's own operator is to run.
std::optional<Results> run_full(RecurrentCall call, bool batch_first) {
  call = cast(std::move(call));
  if (!takes(call) || call.input.dim() != 3) return std::nullopt;
  const Tensor input = batch_first ? call.input.transpose(0, 1) : call.input;
  const int64_t steps = input.size(0), batch = input.size(1);
  if (!fits(call, batch)) return std::nullopt;
  const c10::impl::ExcludeDispatchKeyGuard cast_already(DispatchKey::AutocastPrivateUse1);
  Results made = run_layers(call, input.reshape({steps * batch, input.size(2)}),
                            std::vector<int64_t>(size_t(steps), batch));
  made.out = made.out.view({steps, batch, made.out.size(1)});
  if (batch_first) made.out = made.out.transpose(0, 1);
  return made;
}

// Of packed sequences.
std::optional<Results> run_packed(RecurrentCall call, const Tensor& batch_sizes) {
  call = cast(std::move(call));
  if (!takes(call) || call.input.dim() != 2) return std::nullopt;
  if (!batch_sizes.defined() || !batch_sizes.is_cpu() || batch_sizes.dim() != 1 ||
      batch_sizes.scalar_type() != at::kLong || batch_sizes.numel() == 0 ||
      !batch_sizes.is_contiguous() || batch_sizes.key_set().has(DispatchKey::Python))
    return std::nullopt;
  const auto* sizes = batch_sizes.const_data_ptr<int64_t>();
  const std::vector<int64_t> rows(sizes, sizes + batch_sizes.numel());
  int64_t all = 0;
  for (const int64_t each : rows) all += each;
  TORCH_CHECK(all == call.input.size(0), "packed sequences: batch_sizes add up to ", all,
              ", the data has ", call.input.size(0), " rows");
  const bool fall = std::is_sorted(rows.begin(), rows.end(), std::greater<>());
  if (!fall || rows.back() < 1 || !fits(call, rows.front())) return std::nullopt;
  const c10::impl::ExcludeDispatchKeyGuard cast_already(DispatchKey::AutocastPrivateUse1);
  call.is_packed = true;
  return run_layers(call, call.input, rows);
}

// torch's own walks through both states by the layers of the first.
void check_layers(const char* op, TensorList states, int64_t layers) {
  for (const Tensor& state : states) {
    TORCH_CHECK(state.dim() == 3 && state.size(0) == layers, op,
                ": expected states of 3 dimensions, the first of which is ", layers,
                ", layers by directions, got ", state.sizes());
  }
}

// ---- the operators ----

std::tuple<Tensor, Tensor, Tensor> lstm(const Tensor& input, TensorList hx, TensorList params,
                                        bool has_biases, int64_t layers, double dropout, bool train,
                                        bool bidirectional, bool batch_first) {
  if (hx.size() == 2) {
    if (auto made = run_full({CellKind::lstm, input, hx[0], hx[1], params.vec(), has_biases, layers,
                              dropout, train, bidirectional},
                             batch_first))
      return {made->out, made->h, made->c};
  }
  check_layers("lstm", hx, bidirectional ? 2 * layers : layers);
  return at::native::lstm(input, hx, params, has_biases, layers, dropout, train, bidirectional,
                          batch_first);
}

std::tuple<Tensor, Tensor, Tensor> lstm_packed(const Tensor& data, const Tensor& batch_sizes,
                                               TensorList hx, TensorList params, bool has_biases,
                                               int64_t layers, double dropout, bool train,
                                               bool bidirectional) {
  if (hx.size() == 2) {
    if (auto made = run_packed({CellKind::lstm, data, hx[0], hx[1], params.vec(), has_biases,
                                layers, dropout, train, bidirectional},
                               batch_sizes))
      return {made->out, made->h, made->c};
  }
  check_layers("lstm", hx, bidirectional ? 2 * layers : layers);
  return at::native::lstm(data, batch_sizes, hx, params, has_biases, layers, dropout, train,
                          bidirectional);
}

// GRU and RNN have one state.
using Full = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, TensorList, bool, int64_t,
                                        double, bool, bool, bool);
using Packed = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, TensorList,
                                          bool, int64_t, double, bool, bool);

template <CellKind kind, Full* full, Packed* packed>
struct OneState {
  static std::tuple<Tensor, Tensor> of_full(const Tensor& input, const Tensor& hx,
                                            TensorList params, bool has_biases, int64_t layers,
                                            double dropout, bool train, bool bidirectional,
                                            bool batch_first) {
    if (auto made = run_full(
            {kind, input, hx, {}, params.vec(), has_biases, layers, dropout, train, bidirectional},
            batch_first))
      return {made->out, made->h};
    return full(input, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first);
  }
  static std::tuple<Tensor, Tensor> of_packed(const Tensor& data, const Tensor& batch_sizes,
                                              const Tensor& hx, TensorList params, bool has_biases,
                                              int64_t layers, double dropout, bool train,
                                              bool bidirectional) {
    if (auto made = run_packed(
            {kind, data, hx, {}, params.vec(), has_biases, layers, dropout, train, bidirectional},
            batch_sizes))
      return {made->out, made->h};
    return packed(data, batch_sizes, hx, params, has_biases, layers, dropout, train, bidirectional);
  }
};

using Gru = OneState<CellKind::gru, &at::native::gru, &at::native::gru>;
using RnnTanh = OneState<CellKind::rnn_tanh, &at::native::rnn_tanh, &at::native::rnn_tanh>;
using RnnRelu = OneState<CellKind::rnn_relu, &at::native::rnn_relu, &at::native::rnn_relu>;

// ---- shapes of the cell of a GRU ----

std::tuple<Tensor, Tensor> gru_cell_on_meta(const Tensor& gates, const Tensor&, const Tensor& hx,
                                            const std::optional<Tensor>&,
                                            const std::optional<Tensor>&) {
  return {at::empty_symint(hx.sym_sizes(), hx.options()),
          at::empty_symint({hx.sym_size(0), hx.sym_size(1) * 5}, gates.options())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward_on_meta(
    const Tensor& grad, const Tensor& workspace, bool has_bias) {
  const c10::SymInt rows = grad.sym_size(0), width = grad.sym_size(1);
  const auto made = [&](std::vector<c10::SymInt> sizes) {
    return at::empty_symint(sizes, workspace.options());
  };
  return {made({rows, width * 3}), made({rows, width * 3}),
          at::empty_symint(grad.sym_sizes(), grad.options()),
          has_bias ? made({width * 3}) : Tensor(), has_bias ? made({width * 3}) : Tensor()};
}

void register_layers(torch::Library& library) {
  library.impl("lstm.input", &lstm);
  library.impl("lstm.data", &lstm_packed);
  library.impl("gru.input", &Gru::of_full);
  library.impl("gru.data", &Gru::of_packed);
  library.impl("rnn_tanh.input", &RnnTanh::of_full);
  library.impl("rnn_tanh.data", &RnnTanh::of_packed);
  library.impl("rnn_relu.input", &RnnRelu::of_full);
  library.impl("rnn_relu.data", &RnnRelu::of_packed);
}

}  // namespace

void set_observer_test(ObserverTest test) noexcept { observer_test = test; }

// torch.ops.trn.lstm and the others: the same for tensors of `meta`, which estimates price.
TORCH_LIBRARY_FRAGMENT(trn, library) {
  const std::string shared =
      "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, "
      "bool bidirectional";
  const auto define = [&](const std::string& name, const std::string& state, const char* results) {
    const std::string full = name + ".input(Tensor input, " + state + ", " + shared +
                             ", bool batch_first) -> " + results;
    const std::string packed = name + ".data(Tensor data, Tensor batch_sizes, " + state + ", " +
                               shared + ") -> " + results;
    library.def(full.c_str());
    library.def(packed.c_str());
  };
  define("lstm", "Tensor[] hx", "(Tensor, Tensor, Tensor)");
  for (const char* name : {"gru", "rnn_tanh", "rnn_relu"})
    define(name, "Tensor hx", "(Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(trn, CompositeImplicitAutograd, library) { register_layers(library); }

// torch has none for a GRU's cell.
TORCH_LIBRARY_IMPL(aten, Meta, library) {
  library.impl("_thnn_fused_gru_cell", &gru_cell_on_meta);
  library.impl("_thnn_fused_gru_cell_backward", &gru_cell_backward_on_meta);
}

// Both keys: made of other operators, which have the gradients.
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, library) { register_layers(library); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) { register_layers(library); }

}  // namespace trn
