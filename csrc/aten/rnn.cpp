// The fused LSTM and GRU cells that torch chooses for accelerators, in the order of the unfused
// cells and of their derivatives, 16-bit formats in float32 and rounded once, when a result leaves.
// `workspace` holds the activated gates. Each cell is defined with the host's operators; what lies
// in contiguous rows takes a fused one of the same bits, with the host's activations.
#include "numerics/gates.h"
#include "registrations.h"

#include <ATen/ATen.h>
#include <ATen/ops/sigmoid_backward_cpu_dispatch.h>
#include <ATen/ops/sigmoid_cpu_dispatch.h>
#include <ATen/ops/tanh_backward_cpu_dispatch.h>
#include <ATen/ops/tanh_cpu_dispatch.h>

namespace trn {
namespace {

using Optional = std::optional<at::Tensor>;

bool given(const Optional& x) { return x.has_value() && x->defined(); }

// One call of a fused cell: operands on the host and wide, results in the operands' format.
class Cell {
 public:
  template <typename... Arguments>
  Cell(const char* name, const at::Tensor& like, const Arguments&... arguments)
      : dtype_(like.scalar_type()),
        launch_(name, like, arguments...),
        call_(launch_.device(), name) {}

  at::Tensor operand(const at::Tensor& x) {
    const at::Tensor host = call_.alias(x);
    return at::isReducedFloatingType(dtype_) ? host.to(at::kFloat) : host;
  }

  at::Tensor gates(const at::Tensor& products, const Optional& bias) {
    return given(bias) ? operand(products) + operand(*bias) : operand(products);
  }

  // Fresh ones are handed over: a result that is held elsewhere too would be copied.
  template <typename... Tensors>
  auto results(Tensors... tensors) {
    const auto rounded = [this](at::Tensor& x) {
      return x.defined() && x.scalar_type() != dtype_ ? x.to(dtype_) : std::move(x);
    };
    std::tuple<Tensors...> leaving{rounded(tensors)...};
    launch_.retire();
    return std::apply([this](auto&... each) { return std::tuple{call_.adopt(std::move(each))...}; },
                      leaving);
  }

 private:
  at::ScalarType dtype_;
  Launch launch_;
  HostCall call_;
};

// ---- fused cells, on rows that lie side by side ----

bool are_rows(const at::Tensor& x, const at::Tensor& like, int64_t rows, int64_t columns) {
  return x.scalar_type() == like.scalar_type() && x.dim() == 2 && x.size(0) == rows &&
         x.size(1) == columns && x.is_contiguous() && !x.is_neg();
}

bool are_rows(const Optional& x, const at::Tensor& like, int64_t rows, int64_t columns) {
  return !given(x) || are_rows(*x, like, rows, columns);
}

bool is_row(const Optional& bias, const at::Tensor& like, int64_t columns) {
  return !given(bias) || (bias->scalar_type() == like.scalar_type() && bias->dim() == 1 &&
                          bias->size(0) == columns && bias->is_contiguous() && !bias->is_neg());
}

// Whether a cell with this state [rows, width] and `gates` gates may be fused.
bool fuses(const at::Tensor& state) {
  return !host().foreign && state.dim() == 2 && state.is_contiguous() && !state.is_neg() &&
         at::isFloatingType(state.scalar_type()) && state.numel() > 0;
}

bool fuses(const at::Tensor& state, const at::Tensor& input, const at::Tensor& hidden,
           const Optional& input_bias, const Optional& hidden_bias, int64_t gates) {
  if (!fuses(state)) return false;
  const int64_t rows = state.size(0), columns = gates * state.size(1);
  return are_rows(input, state, rows, columns) && are_rows(hidden, state, rows, columns) &&
         is_row(input_bias, state, columns) && is_row(hidden_bias, state, columns);
}

numerics::CellRows rows_of(const at::Tensor& state) { return {state.size(0), state.size(1)}; }

template <class T>
const T* values(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<T>() : nullptr;
}

// Calls f with a float or a double, as the wide operands are.
template <class F>
auto with_type(const at::Tensor& wide, F f) {
  return wide.scalar_type() == at::kDouble ? f(double()) : f(float());
}

struct Gates {
  at::Tensor input, hidden, input_bias, hidden_bias, state;  // wide, on the host

  Gates(Cell& cell, const at::Tensor& in, const at::Tensor& of_state, const Optional& in_bias,
        const Optional& state_bias, const at::Tensor& from)
      : input(cell.operand(in)), hidden(cell.operand(of_state)), state(cell.operand(from)) {
    if (given(in_bias)) input_bias = cell.operand(*in_bias);
    if (given(state_bias)) hidden_bias = cell.operand(*state_bias);
  }
};

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> fused_lstm(const Gates& x) {
  const auto rows = rows_of(x.state);
  at::Tensor gates = at::empty_like(x.hidden), cy = at::empty_like(x.state),
             hy = at::empty_like(x.state);
  T* all = gates.mutable_data_ptr<T>();
  numerics::add_gates(rows.rows, 4 * rows.width, values<T>(x.hidden), values<T>(x.hidden_bias),
                      values<T>(x.input), values<T>(x.input_bias), all);
  for (int64_t gate = 0; gate < 4; ++gate) {
    at::Tensor one = gates.narrow(1, gate * rows.width, rows.width);
    gate == 2 ? at::cpu::tanh_out(one, one) : at::cpu::sigmoid_out(one, one);
  }
  numerics::lstm_state(rows, all, values<T>(x.state), cy.mutable_data_ptr<T>());
  at::cpu::tanh_out(hy, cy);
  numerics::lstm_output(rows, all, hy.mutable_data_ptr<T>());
  return {std::move(hy), std::move(cy), std::move(gates)};
}

template <class T>
std::tuple<at::Tensor, at::Tensor> fused_lstm_backward(const at::Tensor& grad_hy,
                                                       const at::Tensor& grad_cy,
                                                       const at::Tensor& cx, const at::Tensor& cy,
                                                       const at::Tensor& workspace) {
  const auto rows = rows_of(cx);
  at::Tensor grad_gates = at::empty_like(workspace), grad_cx = at::empty_like(cx), of_o, through_h;
  at::Tensor products = at::empty({3, rows.rows, rows.width}, cx.options());
  const T* gates = values<T>(workspace);
  const auto part = [&](const at::Tensor& x, int64_t gate) {
    return x.narrow(1, gate * rows.width, rows.width);
  };
  at::Tensor d_o = part(grad_gates, 3);
  if (grad_hy.defined()) {
    const at::Tensor tanh_cy = at::cpu::tanh(cy);
    of_o = at::empty_like(cx);
    through_h = at::empty_like(cx);
    numerics::lstm_to_output(rows, gates, values<T>(tanh_cy), values<T>(grad_hy),
                             of_o.mutable_data_ptr<T>(), through_h.mutable_data_ptr<T>());
    at::cpu::tanh_backward_out(through_h, through_h, tanh_cy);
    at::cpu::sigmoid_backward_out(d_o, of_o, part(workspace, 3));
  } else {
    d_o.zero_();
  }
  numerics::lstm_to_gates<T>(rows, {gates, values<T>(cx), values<T>(grad_cy), values<T>(through_h),
                                    products.mutable_data_ptr<T>(), grad_cx.mutable_data_ptr<T>()});
  for (int64_t gate = 0; gate < 3; ++gate) {
    at::Tensor to = part(grad_gates, gate);
    const at::Tensor from = products.select(0, gate), y = part(workspace, gate);
    gate == 2 ? at::cpu::tanh_backward_out(to, from, y)
              : at::cpu::sigmoid_backward_out(to, from, y);
  }
  return {std::move(grad_gates), std::move(grad_cx)};
}

template <class T>
std::tuple<at::Tensor, at::Tensor> fused_gru(const Gates& x) {
  const auto rows = rows_of(x.state);
  at::Tensor hy = at::empty_like(x.state), hidden_n = at::empty_like(x.state);
  at::Tensor planes = at::empty({3, rows.rows, rows.width}, x.state.options());
  at::Tensor workspace = at::empty({rows.rows, 5 * rows.width}, x.state.options());
  T *sums = planes.mutable_data_ptr<T>(), *n = sums + 2 * x.state.numel();
  numerics::gru_sums<T>(rows, {values<T>(x.hidden), values<T>(x.hidden_bias), values<T>(x.input),
                               values<T>(x.input_bias), sums, hidden_n.mutable_data_ptr<T>()});
  for (int64_t gate = 0; gate < 3; ++gate) {
    at::Tensor one = planes.select(0, gate);
    if (gate == 2) numerics::gru_reset<T>(rows, sums, values<T>(hidden_n), n);
    gate == 2 ? at::cpu::tanh_out(one, one) : at::cpu::sigmoid_out(one, one);
  }
  numerics::gru_output<T>(rows, sums, values<T>(x.state), values<T>(hidden_n),
                          hy.mutable_data_ptr<T>(), workspace.mutable_data_ptr<T>());
  return {std::move(hy), std::move(workspace)};
}

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> fused_gru_backward(const at::Tensor& grad_hy,
                                                                  const at::Tensor& workspace) {
  const auto rows = rows_of(grad_hy);
  at::Tensor grad_input = at::empty({rows.rows, 3 * rows.width}, grad_hy.options());
  at::Tensor grad_hidden = at::empty_like(grad_input), grad_hx = at::empty_like(grad_hy);
  at::Tensor products = at::empty({2, rows.rows, rows.width}, grad_hy.options());
  const T* saved = values<T>(workspace);
  const auto part = [&](const at::Tensor& x, int64_t gate) {
    return x.narrow(1, gate * rows.width, rows.width);
  };
  numerics::gru_to_gates(rows, values<T>(grad_hy), saved, products.mutable_data_ptr<T>(),
                         grad_hx.mutable_data_ptr<T>());
  at::Tensor dr = part(grad_input, 0), dz = part(grad_input, 1), dn = part(grad_input, 2);
  at::Tensor of_n = products.select(0, 0);
  at::cpu::tanh_backward_out(dn, of_n, part(workspace, 2));
  at::cpu::sigmoid_backward_out(dz, products.select(0, 1), part(workspace, 1));
  at::Tensor& of_r = of_n;
  numerics::gru_to_reset(rows, values<T>(grad_input), saved, of_r.mutable_data_ptr<T>());
  at::cpu::sigmoid_backward_out(dr, of_r, part(workspace, 0));
  numerics::gru_to_hidden(rows, values<T>(grad_input), saved, grad_hidden.mutable_data_ptr<T>());
  return {std::move(grad_input), std::move(grad_hidden), std::move(grad_hx)};
}

// ---- the operators ----

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input_gates,
                                                         const at::Tensor& hidden_gates,
                                                         const at::Tensor& cx,
                                                         const Optional& input_bias,
                                                         const Optional& hidden_bias) {
  Cell cell("aten::_thnn_fused_lstm_cell", input_gates, hidden_gates, cx, input_bias, hidden_bias);
  if (fuses(cx, input_gates, hidden_gates, input_bias, hidden_bias, 4)) {
    const Gates x(cell, input_gates, hidden_gates, input_bias, hidden_bias, cx);
    auto [hy, cy, workspace] =
        with_type(x.state, [&](auto type) { return fused_lstm<decltype(type)>(x); });
    return cell.results(std::move(hy), std::move(cy), std::move(workspace));
  }
  const at::Tensor gates =
      cell.gates(hidden_gates, hidden_bias) + cell.gates(input_gates, input_bias);
  auto parts = gates.unsafe_chunk(4, 1);
  const at::Tensor i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(),
                   o = parts[3].sigmoid();
  at::Tensor cy = (f * cell.operand(cx)).add_(i * g), hy = o * cy.tanh();
  return cell.results(std::move(hy), std::move(cy), at::cat({i, f, g, o}, 1));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const Optional& grad_hy, const Optional& grad_cy, const at::Tensor& cx, const at::Tensor& cy,
    const at::Tensor& workspace, bool has_bias) {
  Cell cell("aten::_thnn_fused_lstm_cell_backward_impl", cx, cy, workspace, has_bias);
  if (!given(grad_hy) && !given(grad_cy)) return {};
  if (fuses(cx) && are_rows(cy, cx, cx.size(0), cx.size(1)) &&
      are_rows(workspace, cx, cx.size(0), 4 * cx.size(1)) &&
      are_rows(grad_hy, cx, cx.size(0), cx.size(1)) &&
      are_rows(grad_cy, cx, cx.size(0), cx.size(1))) {
    const auto wide = [&](const Optional& x) { return given(x) ? cell.operand(*x) : at::Tensor(); };
    auto [grad_gates, grad_cx] = with_type(cell.operand(cx), [&](auto type) {
      return fused_lstm_backward<decltype(type)>(wide(grad_hy), wide(grad_cy), cell.operand(cx),
                                                 cell.operand(cy), cell.operand(workspace));
    });
    at::Tensor grad_bias = has_bias ? grad_gates.sum(0) : at::Tensor();
    return cell.results(std::move(grad_gates), std::move(grad_cx), std::move(grad_bias));
  }
  auto parts = cell.operand(workspace).chunk(4, 1);
  const at::Tensor i = parts[0], f = parts[1], g = parts[2], o = parts[3];
  const at::Tensor c = cell.operand(cx), t = cell.operand(cy).tanh();
  at::Tensor dc = given(grad_cy) ? cell.operand(*grad_cy) : at::Tensor();
  at::Tensor d_o = at::zeros_like(o);
  if (given(grad_hy)) {
    const at::Tensor dh = cell.operand(*grad_hy);
    const at::Tensor through_h = at::tanh_backward(dh * o, t);
    dc = dc.defined() ? dc + through_h : through_h;
    d_o = at::sigmoid_backward(dh * t, o);
  }
  at::Tensor grad_gates = at::cat({at::sigmoid_backward(dc * g, i), at::sigmoid_backward(dc * c, f),
                                   at::tanh_backward(dc * i, g), d_o},
                                  1);
  at::Tensor grad_bias = has_bias ? grad_gates.sum(0) : at::Tensor();
  return cell.results(std::move(grad_gates), dc * f, std::move(grad_bias));
}

// workspace: r, z, n, h, and the hidden part of n before the reset gate.
std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates,
                                            const at::Tensor& hidden_gates, const at::Tensor& hx,
                                            const Optional& input_bias,
                                            const Optional& hidden_bias) {
  Cell cell("aten::_thnn_fused_gru_cell", input_gates, hidden_gates, hx, input_bias, hidden_bias);
  if (fuses(hx, input_gates, hidden_gates, input_bias, hidden_bias, 3)) {
    const Gates x(cell, input_gates, hidden_gates, input_bias, hidden_bias, hx);
    auto [hy, workspace] =
        with_type(x.state, [&](auto type) { return fused_gru<decltype(type)>(x); });
    return cell.results(std::move(hy), std::move(workspace));
  }
  const at::Tensor h = cell.operand(hx);
  auto in = cell.gates(input_gates, input_bias).unsafe_chunk(3, 1);
  auto hidden = cell.gates(hidden_gates, hidden_bias).unsafe_chunk(3, 1);
  const at::Tensor r = (hidden[0] + in[0]).sigmoid(), z = (hidden[1] + in[1]).sigmoid();
  const at::Tensor n = (in[2] + hidden[2] * r).tanh();
  return cell.results((h - n) * z + n, at::cat({r, z, n, h, hidden[2]}, 1));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& grad_hy, const at::Tensor& workspace, bool has_bias) {
  Cell cell("aten::_thnn_fused_gru_cell_backward", grad_hy, workspace, has_bias);
  const at::Tensor g = cell.operand(grad_hy);
  const auto biases = [&](const at::Tensor& grad) { return has_bias ? grad.sum(0) : at::Tensor(); };
  if (fuses(grad_hy) && are_rows(workspace, grad_hy, grad_hy.size(0), 5 * grad_hy.size(1))) {
    const at::Tensor saved = cell.operand(workspace);
    auto [grad_input, grad_hidden, grad_hx] =
        with_type(g, [&](auto type) { return fused_gru_backward<decltype(type)>(g, saved); });
    at::Tensor of_input = biases(grad_input), of_hidden = biases(grad_hidden);
    return cell.results(std::move(grad_input), std::move(grad_hidden), std::move(grad_hx),
                        std::move(of_input), std::move(of_hidden));
  }
  auto parts = cell.operand(workspace).chunk(5, 1);
  const at::Tensor r = parts[0], z = parts[1], n = parts[2], h = parts[3], hidden_n = parts[4];
  const at::Tensor through_z = g * z;
  const at::Tensor dn = at::tanh_backward(g - through_z, n);
  const at::Tensor dz = at::sigmoid_backward(g * (h - n), z);
  const at::Tensor dr = at::sigmoid_backward(dn * hidden_n, r);
  const at::Tensor grad_input = at::cat({dr, dz, dn}, 1);
  const at::Tensor grad_hidden = at::cat({dr, dz, dn * r}, 1);
  return cell.results(grad_input, grad_hidden, through_z, biases(grad_input), biases(grad_hidden));
}

}  // namespace

void register_rnn(Registrar& registrar) {
  registrar.add("_thnn_fused_lstm_cell", &lstm_cell);
  registrar.add("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
  registrar.add("_thnn_fused_gru_cell", &gru_cell);
  registrar.add("_thnn_fused_gru_cell_backward", &gru_cell_backward);
}

}  // namespace trn
