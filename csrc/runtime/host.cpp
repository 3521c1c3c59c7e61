// See host.h.
#include "host.h"

#include <c10/util/Exception.h>

namespace trn {
namespace {

using c10::BackendComponent;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;

const Host kHosts[] = {
    {"cpu", DeviceType::CPU, BackendComponent::CPUBit, DispatchKeySet(DispatchKey::CPU), false},
    {"cuda", DeviceType::CUDA, BackendComponent::CUDABit, DispatchKeySet(DispatchKey::CUDA), true},
    // The CPU as if it were another device: the paths of a CUDA host, for tests without a GPU.
    {"foreign", DeviceType::CPU, BackendComponent::CPUBit, DispatchKeySet(DispatchKey::CPU), true},
};

}  // namespace

const Host* detail::chosen_host = &kHosts[0];

void choose_host(const std::string& name) {
  for (const Host& row : kHosts) {
    if (name != row.name) continue;
    detail::chosen_host = &row;
    return;
  }
  TORCH_CHECK_VALUE(false, "trn: no host backend \"", name, "\"");
}

DispatchKeySet Host::counterpart(DispatchKeySet keys_of_call) const {
  return counterpart_on(keys_of_call, component);
}

DispatchKeySet counterpart_on(DispatchKeySet keys_of_call, c10::BackendComponent component) {
  // A call that a Python dispatcher makes carries the keys above the backend's too.
  const auto kinds =
      c10::backend_functionality_keys | DispatchKeySet(c10::DispatchKey::NestedTensor);
  const auto kind = c10::toFunctionalityKey((keys_of_call & kinds).highestPriorityTypeId());
  return DispatchKeySet(c10::toRuntimePerBackendFunctionalityKey(kind, component));
}

}  // namespace trn
