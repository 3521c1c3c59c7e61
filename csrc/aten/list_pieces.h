// The host's work of list passes (list_passes.h), done for all of them together: each thread takes
// a stretch of the memory, and runs all passes on a piece of it before the next piece.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <vector>

namespace trn {

// One tensor that passes read or write: memory of the device, and where in the lists it stands.
struct ListOperand {
  at::Tensor host;
  size_t index;
  bool written;
};

struct ListPass {
  c10::OperatorHandle op;                      // in place
  c10::DispatchKeySet keys;                    // the host's
  std::vector<bool> is_list;                   // of each argument, whether of tensors
  std::vector<std::vector<uint32_t>> members;  // of those, the operands
  std::vector<c10::IValue> others;
  bool copies = false;  // members.back() are results, which start as copies of members[0]
};

struct ListPasses {
  std::vector<ListPass> passes;
  std::vector<ListOperand> operands;
  std::vector<int64_t> elements;  // of the tensors at each place of the lists
};

void run_in_pieces(const ListPasses& all);

}  // namespace trn
