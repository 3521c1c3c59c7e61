// See alias.h. Slots are reused in stack order; one that a kernel kept hold of is given away and
// replaced.
#include "alias.h"

#include "composite_alias.h"
#include "runtime/accounting_block.h"
#include "runtime/device_name.h"
#include "runtime/hbm.h"
#include "runtime/pending_work.h"
#include "weight_copies.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_neg_view.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/COW.h>

namespace trn {
namespace {

constexpr auto kPython =
    c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot});

// A TensorImpl that can be pointed at another tensor's memory again and again.
class AliasImpl final : public c10::TensorImpl {
 public:
  AliasImpl() : TensorImpl(host().keys, caffe2::TypeMeta::Make<float>(), host().device()) {}

  void bind(c10::TensorImpl& origin, c10::Storage twin) {
    storage_ = std::move(twin);
    sizes_and_strides_ = origin.sizes_and_strides();
    storage_offset_ = origin.storage_offset();
    numel_ = origin.numel();
    data_type_ = origin.dtype();
    key_set_ = host_keys(origin.key_set());
    is_wrapped_number_ = origin.is_wrapped_number();
    refresh_contiguous();
    // Host kernels choose by it: whether to keep what their backward needs, which library to call.
    if (origin.requires_grad()) set_requires_grad(true);
  }
  void unbind() {
    storage_ = c10::Storage();
    if (requires_grad()) set_requires_grad(false);
  }
};

void keep(void*) {}  // the memory belongs to the trn storage

c10::intrusive_ptr<c10::StorageImpl> make_twin() {
  return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), 0,
                                               c10::DataPtr(nullptr, host().device()),
                                               c10::GetAllocator(host().type),
                                               /*resizable=*/true);
}

struct TensorSlot {
  c10::intrusive_ptr<AliasImpl> alias = c10::make_intrusive<AliasImpl>();
  at::Tensor origin;
  Access access = Access::kRead;
};

struct StorageSlot {
  c10::intrusive_ptr<c10::StorageImpl> twin = make_twin();
  c10::Storage origin;
};

struct Slots {
  std::vector<TensorSlot> tensors;
  std::vector<StorageSlot> storages;
  size_t tensor_top = 0, storage_top = 0;
};

Slots& slots() {
  // Never destroyed: a thread's last kernels may run while its locals are being torn down.
  thread_local Slots* instance = new Slots;
  return *instance;
}

template <class T>
T& push(std::vector<T>& stack, size_t& top) {
  if (top == stack.size()) stack.emplace_back();
  return stack[top++];
}

bool same_layout(const at::Tensor& a, const c10::TensorImpl& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.storage_offset() == b.storage_offset();
}

// Sizes, strides, offset, conj and neg bits that the host kernel changed on a written argument.
void carry_metadata(const at::Tensor& origin, const c10::TensorImpl& alias) {
  auto* impl = origin.unsafeGetTensorImpl();
  if (!same_layout(origin, alias)) {
    impl->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
  }
  if (origin.is_conj() != alias.is_conj()) impl->_set_conj(alias.is_conj());
  if (origin.is_neg() != alias.is_neg()) impl->_set_neg(alias.is_neg());
}

// A twin that was resized holds new memory: the trn storage takes it over.
void carry_storage(const c10::Storage& origin, c10::StorageImpl& twin, c10::Device device) {
  auto* storage = origin.unsafeGetStorageImpl();
  if (twin.data_ptr().get() != storage->data_ptr().get() ||
      twin.data_ptr().get_deleter() != &keep) {
    c10::DataPtr memory = std::move(twin._mutable_data_ptr_no_checks());
    if (host().foreign)
      memory = with_accounting_block(std::move(memory), twin.nbytes(), device.index());
    memory.unsafe_set_device(device);
    storage->set_data_ptr_noswap(std::move(memory));
  }
  storage->set_nbytes(twin.nbytes());
}

// What a kernel that kept a twin holds, and may write at any time.
struct KeptSpan {
  c10::Storage storage;
  WritableSpan written;
};

// Complex32 with a conjugate and a negative bit: the host has no kernel that resolves both at once.
bool has_both_bits(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kComplexHalf && tensor.is_conj() && tensor.is_neg();
}

at::Tensor without_conjugate_bit(const at::Tensor& alias) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return at::_neg_view(at::_neg_view(alias).clone());
}

// A kernel kept the twin: let it own the memory through a reference to the trn storage.
void give_away(StorageSlot& slot) {
  void* memory = slot.twin->_mutable_data_ptr_no_checks().get();
  auto* owner = new KeptSpan{slot.origin, {memory, slot.twin->nbytes()}};
  slot.twin->set_data_ptr_noswap(c10::DataPtr(
      memory, owner, [](void* held) { delete static_cast<KeptSpan*>(held); }, host().device()));
  slot.twin = make_twin();
}

}  // namespace

c10::DispatchKeySet host_keys(c10::DispatchKeySet keys) {
  return (keys - kPython).remove_backend(c10::BackendComponent::PrivateUse1Bit) |
         c10::DispatchKeySet(host().component);
}

HostCall::HostCall(c10::DeviceIndex device, const char* op, bool host_tensors_allowed)
    : device_(device),
      op_(op),
      host_tensors_allowed_(host_tensors_allowed),
      first_tensor_(slots().tensor_top),
      first_storage_(slots().storage_top),
      in_hbm_(device) {
  if (in_forked_child()) throw_forked_child();
  do_pending_work();
}

HostCall::~HostCall() { release(); }

void HostCall::release() noexcept {
  Slots& stack = slots();
  while (stack.tensor_top > first_tensor_) {
    TensorSlot& slot = stack.tensors[--stack.tensor_top];
    if (slot.access == Access::kWrite && slot.origin.has_storage())
      forget_copies(slot.origin.storage().data(), slot.origin.storage().nbytes());
    if (slot.alias.use_count() > 1)
      slot.alias = c10::make_intrusive<AliasImpl>();
    else
      slot.alias->unbind();
    slot.origin.reset();
  }
  while (stack.storage_top > first_storage_) {
    StorageSlot& slot = stack.storages[--stack.storage_top];
    if (slot.twin.use_count() > 1) give_away(slot);
    slot.origin = c10::Storage();
  }
}

void HostCall::check_device(const at::Tensor& tensor) const {
  TORCH_CHECK(tensor.device().index() == device_,
              "Expected all tensors to be on the same device, but found at least "
              "two devices, ",
              c10::Device(kTrn, device_), " and ", tensor.device(),
              "! (when checking arguments of ", op_, ")");
}

void HostCall::check_host_tensor(const at::Tensor& tensor, Access access) const {
  const bool single_value =
      tensor.device().type() == kCpu && tensor.dim() == 0 && access == Access::kRead;
  TORCH_CHECK(single_value || host_tensors_allowed_,
              "Expected all tensors to be on the same device, but found at "
              "least two devices, ",
              c10::Device(kTrn, device_), " and ", tensor.device(),
              "! (when checking arguments of ", op_, ")");
}

c10::intrusive_ptr<c10::StorageImpl> HostCall::twin_of(const c10::Storage& storage, Access access) {
  auto* origin = storage.unsafeGetStorageImpl();
  if (access == Access::kWrite) {
    origin->mutable_data();  // a copy-on-write storage gets its own pages now
    forget_copies(origin->data(), origin->nbytes());
  }
  void* memory = const_cast<void*>(origin->data());
  Slots& stack = slots();
  for (size_t i = first_storage_; i < stack.storage_top; ++i) {
    StorageSlot& slot = stack.storages[i];
    if (slot.origin.unsafeGetStorageImpl() != origin) continue;
    if (slot.twin->data_ptr().get() != memory) {  // materialized since
      slot.twin->set_data_ptr_noswap(c10::DataPtr(memory, memory, &keep, host().device()));
    }
    return slot.twin;
  }
  StorageSlot& slot = push(stack.storages, stack.storage_top);
  slot.twin->set_data_ptr_noswap(c10::DataPtr(memory, memory, &keep, host().device()));
  slot.twin->set_nbytes(origin->nbytes());
  slot.origin = storage;
  return slot.twin;
}

at::Tensor HostCall::alias_dense(const at::Tensor& tensor, Access access) {
  Slots& stack = slots();
  auto* impl = tensor.unsafeGetTensorImpl();
  for (size_t i = first_tensor_; i < stack.tensor_top; ++i) {
    TensorSlot& slot = stack.tensors[i];
    if (slot.origin.unsafeGetTensorImpl() != impl) continue;
    if (access == Access::kWrite && slot.access == Access::kRead) {
      slot.access = access;
      twin_of(impl->unsafe_storage(), access);
    }
    return at::Tensor(slot.alias);
  }
  TORCH_CHECK(impl->has_storage(), op_, ": a ", tensor.toString(), " without storage reached the ",
              device_name(), " device; ",
              "functional transforms and zero tensors must be resolved before");
  auto twin = twin_of(impl->unsafe_storage(), access);
  TensorSlot& slot = push(stack.tensors, stack.tensor_top);
  slot.alias->bind(*impl, c10::Storage(std::move(twin)));
  slot.origin = tensor;
  slot.access = access;
  return at::Tensor(slot.alias);
}

at::Tensor HostCall::alias_composite(const at::Tensor& tensor, Access access) {
  for (const Composite& seen : composites_) {
    if (seen.origin.is_same(tensor)) return seen.alias;
  }
  at::Tensor made = make_composite_alias(*this, tensor, access);
  composites_.push_back({tensor, made, access});
  return made;
}

at::Tensor HostCall::alias(const at::Tensor& tensor, Access access) {
  if (!tensor.defined()) return tensor;
  if (tensor.device().type() != kTrn) {
    check_host_tensor(tensor, access);
    return access == Access::kRead && has_both_bits(tensor) ? without_conjugate_bit(tensor)
                                                            : tensor;
  }
  check_device(tensor);
  if (is_composite(tensor)) return alias_composite(tensor, access);
  const at::Tensor made = alias_dense(tensor, access);
  return access == Access::kRead && has_both_bits(tensor) ? without_conjugate_bit(made) : made;
}

std::optional<at::Tensor> HostCall::alias(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? std::optional<at::Tensor>(alias(*tensor)) : std::nullopt;
}

std::vector<at::Tensor> HostCall::alias(at::ArrayRef<at::Tensor> tensors, Access access) {
  std::vector<at::Tensor> out;
  out.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) out.push_back(alias(tensor, access));
  return out;
}

void HostCall::write_back() {
  Slots& stack = slots();
  const c10::Device device(kTrn, device_);
  for (size_t i = first_tensor_; i < stack.tensor_top; ++i) {
    TensorSlot& slot = stack.tensors[i];
    if (slot.access != Access::kWrite) continue;
    const c10::Storage& storage = slot.origin.storage();
    auto* twin = slot.alias->unsafe_storage().unsafeGetStorageImpl();
    const bool resized =
        twin->data_ptr().get() != storage.data_ptr().get() || twin->nbytes() != storage.nbytes();
    if (resized) carry_storage(storage, *twin, device);
    carry_metadata(slot.origin, *slot.alias);
  }
  for (const Composite& c : composites_) {
    if (c.access == Access::kWrite) carry_composite(*this, c.origin, c.alias);
  }
}

at::Tensor HostCall::adopt(at::Tensor result, size_t holders) {
  if (!result.defined() || result.device().type() != host().type) return result;
  Slots& stack = slots();
  auto* impl = result.unsafeGetTensorImpl();
  for (size_t i = first_tensor_; i < stack.tensor_top; ++i) {
    if (stack.tensors[i].alias.get() == impl) return stack.tensors[i].origin;
  }
  for (const Composite& c : composites_) {
    if (c.alias.is_same(result)) return c.origin;
  }
  const c10::Device device(kTrn, device_);
  if (is_sparse(result)) return adopt_sparse(*this, result, device);
  if (impl->has_storage()) {
    auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
    for (size_t i = first_storage_; i < stack.storage_top; ++i) {
      if (stack.storages[i].twin.get() != storage) continue;
      impl->set_storage_keep_dtype(stack.storages[i].origin);  // a view of an argument
      impl->_change_backend_component_keys(device);
      return result;
    }
  }
  return relabel(std::move(result), device, holders);
}

std::vector<at::Tensor> HostCall::adopt(std::vector<at::Tensor> results) {
  for (at::Tensor& result : results) result = adopt(std::move(result));
  return results;
}

at::Tensor relabel(at::Tensor tensor, c10::Device device, size_t holders) {
  // Held elsewhere too, say inside a quantizer: that one stays a host tensor.
  if (tensor.use_count() > holders) tensor = tensor.clone();
  auto* impl = tensor.unsafeGetTensorImpl();
  TORCH_CHECK(impl->has_storage(), device_name(), ": a host kernel returned a ", tensor.toString(),
              " without storage");
  auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  if (storage->device_type() == host().type) {
    const void* memory = storage->data_ptr().get();
    // Memory from outside the pool that somebody else holds as well (a kernel's cached constant)
    // stays theirs.
    if (memory != nullptr && hbm_device_of(memory) < 0 && impl->unsafe_storage().use_count() > 1) {
      tensor = tensor.clone();
      impl = tensor.unsafeGetTensorImpl();
      storage = impl->unsafe_storage().unsafeGetStorageImpl();
    }
    c10::DataPtr& data = storage->_mutable_data_ptr_no_checks();
    if (host().foreign)
      data = with_accounting_block(std::move(data), storage->nbytes(), device.index());
    data.unsafe_set_device(device);
    storage->set_allocator(device_allocator());
  }
  impl->set_storage_keep_dtype(impl->storage());  // takes the tensor's device from its storage
  impl->_change_backend_component_keys(device);
  return tensor;
}

}  // namespace trn
