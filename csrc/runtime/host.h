// The host backend: the torch device whose memory holds trn tensors and whose kernels compute them.
// To add one, add a row to the table in host.cpp. No header or library of the device is needed:
// memory, generators and kernels come through torch's registries.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/DispatchKeySet.h>

#include <string>

namespace trn {

// Where tensors without an accelerator live, whatever the host backend is.
constexpr c10::DeviceType kCpu = c10::DeviceType::CPU;

struct Host {
  const char* name;
  c10::DeviceType type;
  c10::BackendComponent component;
  c10::DispatchKeySet keys;  // of its dense tensors
  // Memory is the host's own allocator's, counted by accounting blocks of the emulated HBM, and the
  // engines' numerics are reached through the dispatcher. Otherwise memory is the pool's and the
  // numerics are csrc/numerics.
  bool foreign;

  c10::Device device() const noexcept {
    return c10::Device(type, type == kCpu ? c10::DeviceIndex(-1) : c10::DeviceIndex(0));
  }
  // The host's counterpart of a key set: Dense, Sparse, Quantized, ... of this backend.
  c10::DispatchKeySet counterpart(c10::DispatchKeySet keys_of_call) const;
};

// The same on another component, such as the CPU's for metadata.
c10::DispatchKeySet counterpart_on(c10::DispatchKeySet keys_of_call,
                                   c10::BackendComponent component);

namespace detail {
extern const Host* chosen_host;
}

inline const Host& host() noexcept { return *detail::chosen_host; }

// Once, before the first tensor. Throws for a name that is in no row.
void choose_host(const std::string& name);

}  // namespace trn
