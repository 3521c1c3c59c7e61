// The steps of one recurrent layer in one direction, after one product has made the gates' input
// parts of all of them. Its gradient multiplies for the hidden weight once, over all steps.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace trn {

enum class CellKind : uint8_t { lstm, gru, rnn_tanh, rnn_relu };

// How many sequences each step has, in the order of time: they never become more.
struct Steps {
  std::vector<int64_t> rows;
  bool reversed = false;  // from the last step to the first
};

// hx [sequences, width]; what a kind of cell or a layer does not have is undefined.
struct Recurrence {
  CellKind kind;
  Steps steps;
  at::Tensor gates;  // of the inputs: [rows of all steps, gates x hidden]
  at::Tensor hx, cx;
  at::Tensor weight, bias;  // of the hidden state
  at::Tensor input_bias;    // of an LSTM, whose cells add both; others' gates have it added
  at::Tensor projection;
};

// `out` holds the hidden states [rows of all steps, width], h and c the last ones of each sequence.
struct Recurred {
  at::Tensor out, h, c;
  bool any_defined() const { return out.defined() || h.defined() || c.defined(); }
};

Recurred recur(const Recurrence& layer);

}  // namespace trn
