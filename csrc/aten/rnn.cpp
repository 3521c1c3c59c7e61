// The fused LSTM and GRU cells that torch chooses for accelerators, written with the host's
// operators in the order of the unfused cells and of their derivatives, 16-bit formats in float32
// and rounded once, when a result leaves. `workspace` holds the activated gates.
#include "registrations.h"

#include <ATen/ATen.h>

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

  template <typename... Tensors>
  auto results(const Tensors&... tensors) {
    std::tuple<Tensors...> rounded{tensors.defined() ? tensors.to(dtype_) : tensors...};
    launch_.retire();
    return std::apply([this](auto&... each) { return std::tuple{call_.adopt(std::move(each))...}; },
                      rounded);
  }

 private:
  at::ScalarType dtype_;
  Launch launch_;
  HostCall call_;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input_gates,
                                                         const at::Tensor& hidden_gates,
                                                         const at::Tensor& cx,
                                                         const Optional& input_bias,
                                                         const Optional& hidden_bias) {
  Cell cell("aten::_thnn_fused_lstm_cell", input_gates, hidden_gates, cx, input_bias, hidden_bias);
  const at::Tensor gates =
      cell.gates(hidden_gates, hidden_bias) + cell.gates(input_gates, input_bias);
  auto parts = gates.unsafe_chunk(4, 1);
  const at::Tensor i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(),
                   o = parts[3].sigmoid();
  const at::Tensor cy = (f * cell.operand(cx)).add_(i * g);
  return cell.results(o * cy.tanh(), cy, at::cat({i, f, g, o}, 1));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const Optional& grad_hy, const Optional& grad_cy, const at::Tensor& cx, const at::Tensor& cy,
    const at::Tensor& workspace, bool has_bias) {
  Cell cell("aten::_thnn_fused_lstm_cell_backward_impl", cx, cy, workspace, has_bias);
  if (!given(grad_hy) && !given(grad_cy)) return {};
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
  const at::Tensor grad_gates =
      at::cat({at::sigmoid_backward(dc * g, i), at::sigmoid_backward(dc * c, f),
               at::tanh_backward(dc * i, g), d_o},
              1);
  return cell.results(grad_gates, dc * f, has_bias ? grad_gates.sum(0) : at::Tensor());
}

// workspace: r, z, n, h, and the hidden part of n before the reset gate.
std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates,
                                            const at::Tensor& hidden_gates, const at::Tensor& hx,
                                            const Optional& input_bias,
                                            const Optional& hidden_bias) {
  Cell cell("aten::_thnn_fused_gru_cell", input_gates, hidden_gates, hx, input_bias, hidden_bias);
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
  auto parts = cell.operand(workspace).chunk(5, 1);
  const at::Tensor r = parts[0], z = parts[1], n = parts[2], h = parts[3], hidden_n = parts[4];
  const at::Tensor through_z = g * z;
  const at::Tensor dn = at::tanh_backward(g - through_z, n);
  const at::Tensor dz = at::sigmoid_backward(g * (h - n), z);
  const at::Tensor dr = at::sigmoid_backward(dn * hidden_n, r);
  const at::Tensor grad_input = at::cat({dr, dz, dn}, 1);
  const at::Tensor grad_hidden = at::cat({dr, dz, dn * r}, 1);
  return cell.results(grad_input, grad_hidden, through_z,
                      has_bias ? grad_input.sum(0) : at::Tensor(),
                      has_bias ? grad_hidden.sum(0) : at::Tensor());
}

}  // namespace

void register_rnn(Registrar& registrar) {
  registrar.add("_thnn_fused_lstm_cell", &lstm_cell);
  registrar.add("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
  registrar.add("_thnn_fused_gru_cell", &gru_cell);
  registrar.add("_thnn_fused_gru_cell_backward", &gru_cell_backward);
}

}  // namespace trn
