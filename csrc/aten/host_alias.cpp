// See host_alias.h. The context of an alias's memory is a reference to the storage lent.
#include "host_alias.h"

#include "composite_alias.h"
#include "runtime/hbm.h"
#include "runtime/pending_work.h"
#include "weight_copies.h"

#include <ATen/ops/clone.h>

#include <limits>
#include <optional>

namespace trn {
namespace {

struct Lent {
  c10::Storage storage;
  std::optional<WritableSpan> written;
};

void return_storage(void* lent) { delete static_cast<Lent*>(lent); }

// The storage that a host tensor's memory was lent from, or null.
const c10::Storage* lent_storage(const at::Tensor& host) {
  const c10::DataPtr& memory = host.storage().data_ptr();
  return memory.get_deleter() == &return_storage
             ? &static_cast<const Lent*>(memory.get_context())->storage
             : nullptr;
}

at::Tensor with_layout_of(const c10::TensorImpl& like, c10::Storage storage,
                          c10::DispatchKeySet keys) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return at::Tensor(std::move(impl));
}

at::Tensor copied_to(const at::Tensor& host, c10::Device device) {
  const bool to_trn = device.type() == kTrn;
  InHbm pool(to_trn ? device.index() : c10::DeviceIndex(-1));
  at::Tensor copy = host.clone();
  return to_trn ? relabel(std::move(copy), device) : copy;
}

}  // namespace

at::Tensor host_alias(const at::Tensor& tensor, Access access) {
  do_pending_work();
  return lent(tensor, access);
}

at::Tensor lent(const at::Tensor& tensor, Access access) {
  auto* impl = tensor.unsafeGetTensorImpl();
  TORCH_CHECK(impl->has_storage() && impl->layout() == at::kStrided,
              "a compiled graph takes strided trn tensors, got a ", tensor.toString());
  auto* origin = impl->unsafe_storage().unsafeGetStorageImpl();
  auto* lent = new Lent{impl->storage(), std::nullopt};
  if (access == Access::kWrite) {
    origin->mutable_data();
    lent->written.emplace(origin->data(), origin->nbytes());
  }
  auto twin = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), origin->nbytes(),
      c10::DataPtr(const_cast<void*>(origin->data()), lent, &return_storage, host().device()),
      /*allocator=*/nullptr, /*resizable=*/false);
  return with_layout_of(*impl, c10::Storage(std::move(twin)), host_keys(impl->key_set()));
}

at::Tensor device_tensor_of(at::Tensor result, c10::Device device) {
  if (!result.defined() || result.device().type() != host().type) return result;
  if (is_sparse(result)) {
    if (device.type() == kCpu) return at::clone(result);
    return adopt_sparse(result, device,
                        [&](const at::Tensor& member) { return device_tensor_of(member, device); });
  }
  auto* impl = result.unsafeGetTensorImpl();
  TORCH_CHECK(impl->has_storage(), "a compiled graph returned a ", result.toString(),
              " without storage");
  if (const c10::Storage* storage = lent_storage(result)) {
    if (storage->device() != device) return copied_to(result, device);
    at::Tensor view = with_layout_of(*impl, *storage, impl->key_set());
    view.unsafeGetTensorImpl()->_change_backend_component_keys(device);
    return view;
  }
  const void* memory = impl->unsafe_storage().data_ptr().get();
  // Fresh memory of a foreign host is nobody's yet.
  const bool nobodys = memory == nullptr || host().foreign;
  const int pool = nobodys ? int(device.index()) : hbm_device_of(memory);
  if (device.type() == kCpu)
    return memory != nullptr && pool >= 0 ? copied_to(result, device) : result;
  if (pool != device.index()) return copied_to(result, device);
  return relabel(std::move(result), device, std::numeric_limits<size_t>::max());
}

}  // namespace trn
