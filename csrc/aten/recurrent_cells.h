// The fused LSTM and GRU cells and their gradients on rows that lie side by side, in float32 or
// float64: the bits of the host's operators one by one, for any number of threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace trn {

// Of a cell: wide, on the host. Biases may be undefined.
struct CellGates {
  at::Tensor input, hidden, input_bias, hidden_bias, state;
};

using LstmResults = std::tuple<at::Tensor, at::Tensor, at::Tensor>;   // hy, cy, workspace
using GruGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of input, hidden and hx

LstmResults fused_lstm(const CellGates& x);
// Of the gates and of cx. One of grad_hy and grad_cy may be undefined.
std::tuple<at::Tensor, at::Tensor> fused_lstm_backward(const at::Tensor& grad_hy,
                                                       const at::Tensor& grad_cy,
                                                       const at::Tensor& cx, const at::Tensor& cy,
                                                       const at::Tensor& workspace);
std::tuple<at::Tensor, at::Tensor> fused_gru(const CellGates& x);  // hy, workspace

// The gradient of an LSTM's cell, part by part: [rows, width], gates four times that.
struct LstmBackward {
  at::Tensor grad_hy, grad_cy, cx, workspace;     // given, of which one of the first may not be
  at::Tensor grad_gates, grad_cx;                 // results
  at::Tensor tanh_cy, of_o, through_h, products;  // tanh(cy), and scratch, the last of three widths
};

// Units [begin, end) of it.
void fused_lstm_backward_units(const LstmBackward& x, int64_t begin, int64_t end);

GruGradients fused_gru_backward(const at::Tensor& grad_hy, const at::Tensor& workspace);

}  // namespace trn
