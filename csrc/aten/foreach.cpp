// See foreach.h.
#include "foreach.h"

#include "runtime/allocator.h"
#include "runtime/host.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include <algorithm>

namespace trn {
namespace {

using c10::IValue;

constexpr int64_t kWorthThreads = 1 << 16;  // elements

// Where each thread's stretch of the list ends, so that all have about as many elements.
std::vector<size_t> stretches(const c10::List<at::Tensor>& tensors, size_t threads) {
  int64_t total = 0;
  for (size_t i = 0; i < tensors.size(); ++i) total += tensors.get(i).numel();
  std::vector<size_t> ends;
  int64_t seen = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    seen += tensors.get(i).numel();
    if (seen * int64_t(threads) >= total * int64_t(ends.size() + 1) && total >= kWorthThreads)
      ends.push_back(i + 1);
  }
  if (ends.empty() || ends.back() != tensors.size()) ends.push_back(tensors.size());
  return ends;
}

// Whether an argument has something for each of the list's tensors, or one thing for all. Others
// are the host's kernel's to refuse, and it sees them whole.
bool fits(const IValue& value, size_t length) {
  if (value.isList()) return value.toListRef().size() == length;
  return !value.isTensor() || !value.toTensor().defined() || value.toTensor().dim() == 0 ||
         (value.toTensor().dim() == 1 && value.toTensor().size(0) == int64_t(length));
}

// Lists are cut, as is a tensor with a number for each tensor of a list; everything else goes to
// every thread.
IValue cut(const IValue& value, size_t begin, size_t end) {
  if (value.isTensor() && value.toTensor().defined() && value.toTensor().dim() == 1)
    return value.toTensor().narrow(0, int64_t(begin), int64_t(end - begin));
  if (!value.isList()) return value;
  c10::List<IValue> all = value.toList();
  c10::impl::GenericList part(all.elementType());
  for (size_t i = begin; i < end; ++i) part.push_back(all.get(i));
  return part;
}

IValue joined(const std::vector<torch::jit::Stack>& parts, size_t index) {
  c10::List<at::Tensor> list;
  for (const auto& part : parts) {
    for (const IValue& element : part[index].toListRef()) list.push_back(element.toTensor());
  }
  return list;
}

}  // namespace

bool share_memory(const c10::List<at::Tensor>& tensors) {
  std::vector<const void*> storages;
  storages.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i)
    storages.push_back(
        tensors.get(i).unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  std::sort(storages.begin(), storages.end());
  return std::adjacent_find(storages.begin(), storages.end()) != storages.end();
}

void call_on_threads(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                     std::vector<torch::jit::Stack>& calls) {
  const at::ThreadLocalState state;
  const c10::DeviceIndex device = InHbm::current();
  at::parallel_for(0, int64_t(calls.size()), 1, [&](int64_t begin, int64_t end) {
    const at::ThreadLocalStateGuard same_state(state);
    const InHbm in_hbm(device);
    for (int64_t p = begin; p < end; ++p) op.redispatchBoxed(keys, &calls[size_t(p)]);
  });
}

bool is_foreach(const OpPlan& plan) {
  return plan.name.rfind("aten::_foreach_", 0) == 0 && !plan.arguments.empty() &&
         plan.arguments[0].kind == OpPlan::Kind::kTensorList;
}

void call_foreach(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                  torch::jit::Stack* stack) {
  const size_t first = stack->size() - plan.arguments.size();
  const IValue& list = (*stack)[first];
  const bool serial = host().type != kCpu || at::in_parallel_region();
  const size_t threads = serial ? 1 : size_t(at::get_num_threads());
  const auto ends = threads > 1 ? stretches(list.toTensorList(), threads) : std::vector<size_t>{};
  const size_t length = list.toListRef().size();
  const bool whole = std::any_of(stack->begin() + std::ptrdiff_t(first), stack->end(),
                                 [&](const IValue& value) { return !fits(value, length); });
  if (whole || ends.size() < 2 || (plan.any_written && share_memory(list.toTensorList())))
    return op.redispatchBoxed(keys, stack);

  std::vector<torch::jit::Stack> parts(ends.size());
  for (size_t p = 0; p < ends.size(); ++p) {
    for (size_t i = first; i < stack->size(); ++i) {
      parts[p].push_back(cut((*stack)[i], p == 0 ? 0 : ends[p - 1], ends[p]));
    }
  }
  call_on_threads(op, keys, parts);
  stack->resize(first);
  for (size_t i = 0; i < parts[0].size(); ++i) stack->push_back(joined(parts, i));
}

}  // namespace trn
