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
GruGradients fused_gru_backward(const at::Tensor& grad_hy, const at::Tensor& workspace);

}  // namespace trn
