// The fused LSTM and GRU cells that torch chooses for accelerators, written with the host's
// operators in the order of the unfused cells and of their derivatives. `workspace` holds the
// activated gates.
#include "registrations.h"

#include <ATen/ATen.h>

namespace trn {
namespace {

using Optional = std::optional<at::Tensor>;

at::Tensor with_bias(const at::Tensor& gates, const Optional& bias) {
  return bias.has_value() && bias->defined() ? gates + *bias : gates;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input_gates,
                                                         const at::Tensor& hidden_gates,
                                                         const at::Tensor& cx,
                                                         const Optional& input_bias,
                                                         const Optional& hidden_bias) {
  Launch launch("aten::_thnn_fused_lstm_cell", input_gates, hidden_gates, cx, input_bias,
                hidden_bias);
  HostCall call(launch.device(), "aten::_thnn_fused_lstm_cell");
  const at::Tensor c = call.alias(cx);
  const at::Tensor gates = with_bias(call.alias(hidden_gates), call.alias(hidden_bias)) +
                           with_bias(call.alias(input_gates), call.alias(input_bias));
  auto parts = gates.unsafe_chunk(4, 1);
  const at::Tensor i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(),
                   o = parts[3].sigmoid();
  at::Tensor cy = (f * c).add_(i * g);
  at::Tensor hy = o * cy.tanh();
  at::Tensor workspace = at::cat({i, f, g, o}, 1);
  launch.retire();
  return {call.adopt(std::move(hy)), call.adopt(std::move(cy)), call.adopt(std::move(workspace))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const Optional& grad_hy, const Optional& grad_cy, const at::Tensor& cx, const at::Tensor& cy,
    const at::Tensor& workspace, bool has_bias) {
  Launch launch("aten::_thnn_fused_lstm_cell_backward_impl", cx, cy, workspace, has_bias);
  HostCall call(launch.device(), "aten::_thnn_fused_lstm_cell_backward_impl");
  const bool from_h = grad_hy.has_value() && grad_hy->defined(),
             from_c = grad_cy.has_value() && grad_cy->defined();
  if (!from_h && !from_c) return {};
  const at::Tensor c = call.alias(cx);
  auto parts = call.alias(workspace).chunk(4, 1);
  const at::Tensor i = parts[0], f = parts[1], g = parts[2], o = parts[3];
  const at::Tensor t = call.alias(cy).tanh();
  at::Tensor dc = from_c ? call.alias(*grad_cy) : at::Tensor();
  at::Tensor d_o = at::zeros_like(o);
  if (from_h) {
    const at::Tensor dh = call.alias(*grad_hy);
    const at::Tensor through_h = at::tanh_backward(dh * o, t);
    dc = from_c ? dc + through_h : through_h;
    d_o = at::sigmoid_backward(dh * t, o);
  }
  at::Tensor grad_gates = at::cat({at::sigmoid_backward(dc * g, i), at::sigmoid_backward(dc * c, f),
                                   at::tanh_backward(dc * i, g), d_o},
                                  1);
  at::Tensor grad_cx = dc * f;
  at::Tensor grad_bias = has_bias ? grad_gates.sum(0) : at::Tensor();
  launch.retire();
  return {call.adopt(std::move(grad_gates)), call.adopt(std::move(grad_cx)),
          call.adopt(std::move(grad_bias))};
}

// workspace: r, z, n, h, and the hidden part of n before the reset gate.
std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates,
                                            const at::Tensor& hidden_gates, const at::Tensor& hx,
                                            const Optional& input_bias,
                                            const Optional& hidden_bias) {
  Launch launch("aten::_thnn_fused_gru_cell", input_gates, hidden_gates, hx, input_bias,
                hidden_bias);
  HostCall call(launch.device(), "aten::_thnn_fused_gru_cell");
  const at::Tensor h = call.alias(hx);
  auto in = with_bias(call.alias(input_gates), call.alias(input_bias)).unsafe_chunk(3, 1);
  auto hidden = with_bias(call.alias(hidden_gates), call.alias(hidden_bias)).unsafe_chunk(3, 1);
  const at::Tensor r = (hidden[0] + in[0]).sigmoid(), z = (hidden[1] + in[1]).sigmoid();
  const at::Tensor n = (in[2] + hidden[2] * r).tanh();
  at::Tensor hy = (h - n) * z + n;
  at::Tensor workspace = at::cat({r, z, n, h, hidden[2]}, 1);
  launch.retire();
  return {call.adopt(std::move(hy)), call.adopt(std::move(workspace))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& grad_hy, const at::Tensor& workspace, bool has_bias) {
  Launch launch("aten::_thnn_fused_gru_cell_backward", grad_hy, workspace, has_bias);
  HostCall call(launch.device(), "aten::_thnn_fused_gru_cell_backward");
  const at::Tensor g = call.alias(grad_hy);
  auto parts = call.alias(workspace).chunk(5, 1);
  const at::Tensor r = parts[0], z = parts[1], n = parts[2], h = parts[3], hidden_n = parts[4];
  at::Tensor through_z = g * z;
  const at::Tensor dn = at::tanh_backward(g - through_z, n);
  const at::Tensor dz = at::sigmoid_backward(g * (h - n), z);
  const at::Tensor dr = at::sigmoid_backward(dn * hidden_n, r);
  at::Tensor grad_input = at::cat({dr, dz, dn}, 1);
  at::Tensor grad_hidden = at::cat({dr, dz, dn * r}, 1);
  at::Tensor input_bias = has_bias ? grad_input.sum(0) : at::Tensor();
  at::Tensor hidden_bias = has_bias ? grad_hidden.sum(0) : at::Tensor();
  launch.retire();
  return {call.adopt(std::move(grad_input)), call.adopt(std::move(grad_hidden)),
          call.adopt(std::move(through_z)), call.adopt(std::move(input_bias)),
          call.adopt(std::move(hidden_bias))};
}

}  // namespace

void register_rnn(Registrar& registrar) {
  registrar.add("_thnn_fused_lstm_cell", &lstm_cell);
  registrar.add("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
  registrar.add("_thnn_fused_gru_cell", &gru_cell);
  registrar.add("_thnn_fused_gru_cell_backward", &gru_cell_backward);
}

}  // namespace trn
