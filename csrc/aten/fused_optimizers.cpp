// See fused_optimizers.h.
#include "fused_optimizers.h"

#include "foreach.h"
#include "runtime/host.h"

#include <ATen/Parallel.h>

namespace trn {
namespace {

using c10::IValue;
using torch::jit::Stack;

constexpr int64_t kWorthStep = 1 << 16;     // elements of all parameters (chosen)
constexpr int64_t kWorthCutting = 1 << 13;  // elements of a tensor, else one thread's (chosen)
constexpr int64_t kWholeVectors = 64;       // elements that whole vectors of any type make up

// What a thread has of a tensor.
struct Part {
  size_t index;
  int64_t begin, elements;
};

std::vector<Part> parts_of(const c10::List<at::Tensor>& tensors, int64_t thread, int64_t threads) {
  std::vector<Part> out;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t all = tensors.get(i).numel();
    int64_t begin = 0, end = all;
    if (all >= kWorthCutting) {
      begin = all * thread / threads / kWholeVectors * kWholeVectors;
      if (thread + 1 < threads) end = all * (thread + 1) / threads / kWholeVectors * kWholeVectors;
    } else if (int64_t(i) % threads != thread) {
      continue;
    }
    if (begin < end) out.push_back({i, begin, end - begin});
  }
  return out;
}

at::Tensor view_of(const at::Tensor& tensor, const Part& part) {
  const auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(tensor.storage()),
                                                         tensor.key_set(), tensor.dtype());
  const int64_t stride = 1;
  impl->set_sizes_and_strides({&part.elements, 1}, {&stride, 1},
                              tensor.storage_offset() + part.begin);
  return at::Tensor(impl);
}

// Whether a list has, for each of the parameters, a tensor of its form.
bool is_formed_alike(const c10::List<at::Tensor>& list, const c10::List<at::Tensor>& parameters) {
  if (list.size() != parameters.size()) return false;
  for (size_t i = 0; i < list.size(); ++i) {
    const at::Tensor &one = list.get(i), &parameter = parameters.get(i);
    if (!one.is_non_overlapping_and_dense() || one.sizes() != parameter.sizes() ||
        one.strides() != parameter.strides())
      return false;
  }
  return true;
}

// Lists like that of the parameters are cut; of others, the parts' tensors are taken.
IValue argument_of(const IValue& value, bool cut, const std::vector<Part>& parts) {
  if (!value.isTensorList() || value.toListRef().empty()) return value;
  const auto all = value.toListRef();
  c10::List<at::Tensor> out;
  out.reserve(parts.size());
  for (const Part& part : parts) {
    const at::Tensor& tensor = all[part.index].toTensor();
    out.push_back(cut ? view_of(tensor, part) : tensor);
  }
  return out;
}

// Of each argument, whether it is cut; none where the host's kernel has to see the lists whole.
std::vector<bool> cuts(const Stack& stack, size_t first) {
  const auto parameters = stack[first].toTensorList();
  std::vector<bool> out;
  int64_t elements = 0;
  for (size_t i = 0; i < parameters.size(); ++i) elements += parameters.get(i).numel();
  if (elements < kWorthStep) return out;
  for (size_t a = first; a < stack.size(); ++a) {
    out.push_back(stack[a].isTensorList() && is_formed_alike(stack[a].toTensorList(), parameters));
    const bool fits = !stack[a].isTensorList() || stack[a].toListRef().empty() ||
                      stack[a].toListRef().size() == parameters.size();
    if (!fits || (out.back() && share_memory(stack[a].toTensorList()))) return {};
  }
  return out;
}

}  // namespace

bool is_fused_optimizer(const OpPlan& plan) {
  return plan.name.rfind("aten::_fused_", 0) == 0 && !plan.arguments.empty() &&
         plan.arguments[0].kind == OpPlan::Kind::kTensorList && plan.arguments[0].written;
}

void call_fused_optimizer(const OpPlan& plan, const c10::OperatorHandle& op,
                          c10::DispatchKeySet keys, Stack* stack) {
  const size_t first = stack->size() - plan.arguments.size();
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  std::vector<bool> cut;
  if (host().type == kCpu && threads > 1) cut = cuts(*stack, first);
  if (cut.empty() || !cut[0]) return op.redispatchBoxed(keys, stack);

  std::vector<Stack> calls;
  for (int64_t t = 0; t < threads; ++t) {
    const auto parts = parts_of((*stack)[first].toTensorList(), t, threads);
    Stack& call = calls.emplace_back();
    for (size_t i = 0; i < cut.size(); ++i)
      call.push_back(argument_of((*stack)[first + i], cut[i], parts));
  }
  call_on_threads(op, keys, calls);
  stack->resize(first);
}

}  // namespace trn
