// torch's chunked linear_cross_entropy on trn: sums in float32, as the engines do.
//
// torch picks the format of its sums from a table of devices. For one that is not in it, it is that
// of the input (torch 2.13), which would round after every chunk. A format asked for explicitly is
// kept, as far as it differs from the input's.
#include "redispatch.h"

#include <ATen/core/ivalue.h>

#include <string_view>

namespace trn {
namespace {

c10::IValue* argument(const c10::FunctionSchema& schema, torch::jit::Stack& stack,
                      std::string_view name) {
  const auto index = schema.argumentIndexWithName(name);
  return index.has_value() ? &stack[stack.size() - schema.arguments().size() + size_t(*index)]
                           : nullptr;
}

void sum_in_float(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  c10::IValue* dtype = argument(op.schema(), *stack, "acc_dtype");
  c10::IValue* policy = argument(op.schema(), *stack, "acc_policy");
  const at::ScalarType input = argument(op.schema(), *stack, "input")->toTensor().scalar_type();
  if ((input == at::kHalf || input == at::kBFloat16) && dtype->toScalarType() == input) {
    *dtype = at::kFloat;
    *policy = std::string("accurate");
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU),
                     stack);  // the one kernel for all devices
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_nn, PrivateUse1, library) {
  for (const char* name : {"_linear_cross_entropy_batch_chunked",
                           "_linear_cross_entropy_batch_chunked_no_reduction"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&sum_in_float>());
  }
}

}  // namespace trn
