// See product_roles.h. Weights are told by their storages, which are held weakly: one that is gone
// leaves an address that no other storage can have while it stands here.
#include "product_roles.h"

#include <c10/core/StorageImpl.h>

#include <atomic>
#include <mutex>
#include <unordered_map>

namespace trn {
namespace {

thread_local const ProductRole* role_in_force = nullptr;

std::atomic<ParameterTest> parameter_test{nullptr};

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

struct Weights {
  std::mutex mutex;
  std::unordered_map<const c10::StorageImpl*, WeakStorage> storages;
  size_t next_sweep = 1024;
};

std::atomic<bool> any_weights{false};

Weights& weights() {
  static Weights* instance = new Weights;  // tensors may outlive what is destroyed at exit
  return *instance;
}

const c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  return impl->has_storage() ? impl->unsafe_storage().unsafeGetStorageImpl() : nullptr;
}

bool holds(const c10::StorageImpl* storage) {
  if (storage == nullptr || !any_weights.load(std::memory_order_relaxed)) return false;
  Weights& w = weights();
  const std::lock_guard lock(w.mutex);
  return w.storages.count(storage) > 0;
}

void forget(const c10::StorageImpl* storage) {
  if (!any_weights.load(std::memory_order_relaxed)) return;
  Weights& w = weights();
  const std::lock_guard lock(w.mutex);
  w.storages.erase(storage);
}

bool is_parameter(const at::TensorBase& tensor) {
  const ParameterTest test = parameter_test.load(std::memory_order_relaxed);
  return test != nullptr && test(tensor.unsafeGetTensorImpl());
}

bool covers_storage(const at::Tensor& tensor) {
  const auto* storage = storage_of(tensor);
  return storage != nullptr && tensor.layout() == at::kStrided &&
         tensor.numel() * int64_t(tensor.element_size()) == int64_t(storage->nbytes());
}

}  // namespace

OperandFormats formats_of(Policy policy, ProductRole role) {
  const OperandFormats formats = operand_formats(policy, role.matmul_class, role.weight < 0);
  return role.weight == 0 ? OperandFormats{formats.second, formats.first} : formats;
}

bool tells_weights(Policy policy) {
  const OperandFormats linear = operand_formats(policy, MatmulClass::linear);
  return linear.first != linear.second;
}

ProductRole role_of(const at::Tensor& a, const at::Tensor& b) {
  if (role_in_force != nullptr) return *role_in_force;
  const bool batched = a.dim() == 3;
  if (!batched && !tells_weights(current_policy())) return {};
  const bool first = is_weight(a), second = is_weight(b);
  const auto matmul_class =
      batched && !first && !second ? MatmulClass::attention : MatmulClass::linear;
  return {matmul_class, first && !second ? 0 : 1};
}

RoleScope::RoleScope(ProductRole role) noexcept : previous_(role_in_force), role_(role) {
  role_in_force = &role_;
}
RoleScope::~RoleScope() { role_in_force = previous_; }

void set_parameter_test(ParameterTest test) noexcept { parameter_test = test; }

void mark_weight(const at::Tensor& tensor) {
  if (!tensor.unsafeGetTensorImpl()->has_storage()) return;
  const c10::Storage storage = tensor.unsafeGetTensorImpl()->unsafe_storage();
  Weights& w = weights();
  const std::lock_guard lock(w.mutex);
  w.storages.emplace(storage.unsafeGetStorageImpl(), storage.getWeakStorageImpl());
  any_weights = true;
  if (w.storages.size() < w.next_sweep) return;
  std::erase_if(w.storages, [](const auto& entry) { return entry.second.expired(); });
  w.next_sweep = 2 * w.storages.size() + 1024;
}

bool is_weight(const at::Tensor& tensor) {
  if (!tensor.defined()) return false;
  if (holds(storage_of(tensor))) return true;
  if (is_parameter(tensor) || (tensor.is_view() && is_parameter(tensor._base()))) {
    mark_weight(tensor);  // for its views of modes that do not tell whose they are
    return true;
  }
  return false;
}

void follow_copy(const at::Tensor& made, const at::Tensor& from) {
  if (!made.defined() || !covers_storage(made)) return;
  if (is_weight(from))
    mark_weight(made);
  else
    forget(storage_of(made));
}

}  // namespace trn
