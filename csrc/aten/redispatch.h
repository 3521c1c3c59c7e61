// Runs aten operators of the trn device on the host's kernels, over aliases of the tensors' memory.
#pragma once

#include "preconditions.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <memory>

namespace trn {

struct WiderRow;  // wider.h

// Below autograd and autocast: what a backend kernel calls is plain host work.
class BelowAutograd {
 private:
  c10::impl::ExcludeDispatchKeyGuard guard_{c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                                            c10::autocast_dispatch_keyset};
};

// How the boxed kernel treats each argument of one operator; read from its schema once.
struct OpPlan {
  enum class Kind : uint8_t { kOther, kTensor, kTensorList, kGenerator, kDevice };
  struct Argument {
    Kind kind = Kind::kOther;
    bool written = false;
    bool host_allowed = false;  // a tensor that may stay on the host, as on CUDA
    bool pins = false;          // asks for page-locked memory, which only the host has
    bool format = false;        // the dtype of the results
    bool number = false;        // data, whose class may decide what the launch costs
    bool plain = false;         // taken for contiguous by the host's kernel: plain_operands.h
  };
  explicit OpPlan(const c10::OperatorHandle& op);

  std::string name;  // "aten::add.Tensor"
  uint64_t name_hash = 0;
  std::vector<Argument> arguments;
  bool any_written = false;
  bool any_plain = false;
  bool rounds = true;  // its 16-bit results may round stochastically: ours do it themselves
  Precondition check = nullptr;
  const WiderRow* wider = nullptr;  // formats that the host computes in a wider one
  bool foreach_list = false;        // works on lists of tensors
  bool fused_optimizer = false;     // and is one's whole step
  bool list_pass = false;           // and may be kept: list_passes.h
  bool draws_unseen = false;        // random, without a generator argument
  bool indexes = false;             // its first argument is what `indices` look into
};

// A boxed kernel with its own plan.
torch::CppFunction host_kernel();
// The same for any operator: the backend fallback.
void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace trn
