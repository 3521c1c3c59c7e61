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

// The units [begin, end) of a hidden state.
struct Units {
  int64_t begin, end;
};

// What a step back has and makes: rows of the width of the state, but for the gates, of 4 widths.
struct LstmBackward {
  at::Tensor grad_hy, grad_cy, cx, cy, workspace;  // given, of which the first two may not be
  at::Tensor grad_gates, grad_cx;                  // results
  at::Tensor tanh_cy, of_o, through_h, products;   // scratch, the last [rows, 3 * width]
};

// Some units of a float32 cell, in threads of the caller's.
void lstm_backward_units(const LstmBackward& x, Units units);

LstmResults fused_lstm(const CellGates& x);
// Of the gates and of cx. One of grad_hy and grad_cy may be undefined.
std::tuple<at::Tensor, at::Tensor> fused_lstm_backward(const at::Tensor& grad_hy,
                                                       const at::Tensor& grad_cy,
                                                       const at::Tensor& cx, const at::Tensor& cy,
                                                       const at::Tensor& workspace);
std::tuple<at::Tensor, at::Tensor> fused_gru(const CellGates& x);  // hy, workspace
GruGradients fused_gru_backward(const at::Tensor& grad_hy, const at::Tensor& workspace);

}  // namespace trn
