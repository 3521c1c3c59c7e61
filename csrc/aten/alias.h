// Host aliases of trn tensors: the same memory under the host's dispatch key, for the length of one
// call.
//
// A call borrows tensors and storages from a per-thread stack of slots, so that running a host
// kernel on trn tensors allocates nothing. Results come back re-labelled, never copied.
#pragma once

#include "aten/float32_products.h"
#include "runtime/allocator.h"
#include "runtime/host.h"

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <optional>
#include <string>
#include <vector>

namespace trn {

enum class Access : uint8_t { kRead, kWrite };

struct AliasSlot;

class HostCall {
 public:
  // `op` names the operator in error messages and must outlive the call.
  HostCall(c10::DeviceIndex device, const char* op, bool host_tensors_allowed = false);
  ~HostCall();
  HostCall(const HostCall&) = delete;
  HostCall& operator=(const HostCall&) = delete;

  // The host's view of an argument. Host tensors pass when they hold a single value, or by the op's
  // contract.
  at::Tensor alias(const at::Tensor& tensor, Access access = Access::kRead);
  std::optional<at::Tensor> alias(const std::optional<at::Tensor>& tensor);
  std::vector<at::Tensor> alias(at::ArrayRef<at::Tensor> tensors, Access access = Access::kRead);

  // Carries changed sizes, strides and storages of written arguments back. Before adopt().
  void write_back();

  // Whether the arguments aliased from now on may be host tensors of any size.
  void allow_host_tensors(bool allowed) { host_tensors_allowed_ = allowed; }

  // The trn tensor for a host result: an argument itself, a view of one, or a fresh tensor.
  // `holders` references to a fresh result are known; one held elsewhere too is copied, not
  // re-labelled.
  at::Tensor adopt(at::Tensor result, size_t holders = 1);
  std::vector<at::Tensor> adopt(std::vector<at::Tensor> results);

  c10::DeviceIndex device() const { return device_; }

  // The host storage over the memory of a trn storage, one for each storage of the call.
  c10::intrusive_ptr<c10::StorageImpl> twin_of(const c10::Storage& storage, Access access);

 private:
  at::Tensor alias_dense(const at::Tensor& tensor, Access access);
  at::Tensor alias_composite(const at::Tensor& tensor, Access access);
  void check_host_tensor(const at::Tensor& tensor, Access access) const;
  void check_device(const at::Tensor& tensor) const;
  void release() noexcept;

  const c10::DeviceIndex device_;
  const char* const op_;
  bool host_tensors_allowed_;
  const size_t first_tensor_, first_storage_;
  InHbm in_hbm_;
  Float32Products float32_products_;
  struct Composite {
    at::Tensor origin, alias;
    Access access;
  };
  std::vector<Composite> composites_;  // sparse, nested and quantized arguments
};

// The host's dispatch keys for a trn tensor's.
c10::DispatchKeySet host_keys(c10::DispatchKeySet keys);

// Turns a tensor that a host kernel made into a trn tensor on `device`, in place.
at::Tensor relabel(at::Tensor tensor, c10::Device device, size_t holders = 1);

}  // namespace trn
