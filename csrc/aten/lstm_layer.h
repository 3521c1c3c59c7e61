// A layer of an LSTM in one direction with the CPU's own kernel, oneDNN's, under the conditions on
// which the CPU takes it. The device launches what it launches for the steps (recurrent_steps.h).
#pragma once

#include "recurrence.h"

namespace trn {

// For sequences of one length, without projections; the tensors are of one float format and of
// fitting sizes. Without biases both are undefined.
struct LstmLayer {
  at::Tensor x;  // [rows of all steps, features]
  at::Tensor of_input, of_hidden, input_bias, hidden_bias;
  at::Tensor hx, cx;  // [sequences, width]
  int64_t steps;
  bool reversed;
};

// float32 that the policy leaves as it is, while torch.backends.mkldnn is enabled.
bool is_host_layer(const LstmLayer& layer);

// `out` holds the hidden states [rows of all steps, width].
Recurred run_host_layer(const LstmLayer& layer);

}  // namespace trn
