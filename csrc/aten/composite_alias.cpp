// One row for each layout: how its alias is built around aliased members, and how results come
// back.
#include "composite_alias.h"

#include <ATen/NestedTensorImpl.h>
#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/quantized/QTensorImpl.h>
#include <c10/core/AutogradState.h>
#include <c10/core/DeviceGuard.h>

namespace trn {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

constexpr auto kSparseKeys = DispatchKeySet({DispatchKey::Sparse, DispatchKey::SparseCsr});
constexpr auto kCompositeKeys =
    kSparseKeys | DispatchKeySet({DispatchKey::NestedTensor, DispatchKey::Quantized});

DispatchKeySet host_keys(const at::Tensor& tensor) {
  return tensor.key_set().remove_backend(c10::BackendComponent::PrivateUse1Bit) |
         DispatchKeySet(host().component);
}

// Tensors made meanwhile are inference tensors like `origin`, or are not, whatever the mode: views
// of them are what views of `origin` should be.
class InferenceLike {
 public:
  explicit InferenceLike(const at::Tensor& origin) : before_(c10::AutogradState::get_tls_state()) {
    c10::AutogradState state = before_;
    state.set_inference_mode(origin.is_inference());
    c10::AutogradState::set_tls_state(state);
  }
  ~InferenceLike() { c10::AutogradState::set_tls_state(before_); }
  InferenceLike(const InferenceLike&) = delete;
  InferenceLike& operator=(const InferenceLike&) = delete;

 private:
  const c10::AutogradState before_;
};

constexpr size_t kMemberHolders = 2;  // the sparse tensor and the handle we pass

at::SparseTensorImpl* coo(const at::Tensor& tensor) {
  return static_cast<at::SparseTensorImpl*>(tensor.unsafeGetTensorImpl());
}

at::SparseCsrTensorImpl* compressed(const at::Tensor& tensor) {
  return static_cast<at::SparseCsrTensorImpl*>(tensor.unsafeGetTensorImpl());
}

bool is_coo(const at::Tensor& tensor) { return tensor.layout() == at::kSparse; }

at::Tensor alias_coo(HostCall& call, const at::Tensor& tensor, Access access) {
  auto* from = coo(tensor);
  at::Tensor made =
      at::detail::make_tensor<at::SparseTensorImpl>(host_keys(tensor), tensor.dtype());
  coo(made)->raw_resize_(from->sparse_dim(), from->dense_dim(), from->sizes());
  coo(made)->set_indices_and_values_unsafe(call.alias(from->indices(), access),
                                           call.alias(from->values(), access));
  coo(made)->set_coalesced(from->coalesced());
  return made;
}

at::Tensor alias_compressed(HostCall& call, const at::Tensor& tensor, Access access) {
  auto* from = compressed(tensor);
  at::Tensor made = at::detail::make_tensor<at::SparseCsrTensorImpl>(
      host_keys(tensor), host().device(), from->layout(), tensor.dtype());
  compressed(made)->set_member_tensors(call.alias(from->compressed_indices(), access),
                                       call.alias(from->plain_indices(), access),
                                       call.alias(from->values(), access), from->sizes());
  return made;
}

at::Tensor alias_nested(HostCall& call, const at::Tensor& tensor, Access access) {
  auto* from = static_cast<at::native::NestedTensorImpl*>(tensor.unsafeGetTensorImpl());
  return at::detail::make_tensor<at::native::NestedTensorImpl>(
      c10::Storage(call.twin_of(from->unsafe_storage(), access)), host_keys(tensor), tensor.dtype(),
      from->get_nested_sizes(), from->get_nested_strides(), from->get_storage_offsets());
}

at::Tensor alias_quantized(HostCall& call, const at::Tensor& tensor, Access access) {
  auto* from = static_cast<at::QTensorImpl*>(tensor.unsafeGetTensorImpl());
  at::Tensor made = at::detail::make_tensor<at::QTensorImpl>(
      c10::Storage(call.twin_of(from->unsafe_storage(), access)), host_keys(tensor), tensor.dtype(),
      from->quantizer());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(from->sizes(), from->strides(),
                                                    from->storage_offset());
  return made;
}

}  // namespace

bool is_sparse(const at::Tensor& tensor) { return tensor.key_set().has_any(kSparseKeys); }
bool is_composite(const at::Tensor& tensor) { return tensor.key_set().has_any(kCompositeKeys); }

at::Tensor make_composite_alias(HostCall& call, const at::Tensor& tensor, Access access) {
  const InferenceLike like(tensor);
  if (tensor.is_nested()) return alias_nested(call, tensor, access);
  if (tensor.is_quantized()) return alias_quantized(call, tensor, access);
  at::Tensor made =
      is_coo(tensor) ? alias_coo(call, tensor, access) : alias_compressed(call, tensor, access);
  // amax and amin of sparse products keep what their backward needs only if asked so.
  if (tensor.requires_grad()) made.unsafeGetTensorImpl()->set_requires_grad(true);
  return made;
}

void carry_composite(HostCall& call, const at::Tensor& origin, const at::Tensor& alias) {
  if (origin.is_quantized()) {
    static_cast<at::QTensorImpl*>(origin.unsafeGetTensorImpl())
        ->set_quantizer_(static_cast<at::QTensorImpl*>(alias.unsafeGetTensorImpl())->quantizer());
  } else if (origin.is_nested()) {
    return;  // written in place; a host kernel never changes its nesting
  } else if (is_coo(origin)) {
    auto* to = coo(origin);
    auto* from = coo(alias);
    to->raw_resize_(from->sparse_dim(), from->dense_dim(), from->sizes());
    to->set_indices_and_values_unsafe(call.adopt(from->indices(), kMemberHolders),
                                      call.adopt(from->values(), kMemberHolders));
    to->set_coalesced(from->coalesced());
  } else {
    auto* from = compressed(alias);
    compressed(origin)->set_member_tensors(call.adopt(from->compressed_indices(), kMemberHolders),
                                           call.adopt(from->plain_indices(), kMemberHolders),
                                           call.adopt(from->values(), kMemberHolders),
                                           from->sizes());
  }
}

// Members held only by the result are re-labelled in place; the tensor around them is made anew.
at::Tensor adopt_sparse(const at::Tensor& result, c10::Device device, Adopt adopt) {
  const InferenceLike like(result);
  const DispatchKeySet keys = result.key_set().remove_backend(host().component) |
                              DispatchKeySet(c10::BackendComponent::PrivateUse1Bit);
  if (is_coo(result)) {
    auto* from = coo(result);
    const c10::DeviceGuard guard(device);  // a SparseTensorImpl begins on the current device
    at::Tensor made = at::detail::make_tensor<at::SparseTensorImpl>(keys, result.dtype());
    coo(made)->raw_resize_(from->sparse_dim(), from->dense_dim(), from->sizes());
    coo(made)->set_indices_and_values_unsafe(adopt(from->indices()), adopt(from->values()));
    coo(made)->set_coalesced(from->coalesced());
    return made;
  }
  auto* from = compressed(result);
  at::Tensor made = at::detail::make_tensor<at::SparseCsrTensorImpl>(keys, device, from->layout(),
                                                                     result.dtype());
  compressed(made)->set_member_tensors(adopt(from->compressed_indices()),
                                       adopt(from->plain_indices()), adopt(from->values()),
                                       from->sizes());
  return made;
}

at::Tensor adopt_sparse(HostCall& call, const at::Tensor& result, c10::Device device) {
  return adopt_sparse(result, device,
                      [&](const at::Tensor& member) { return call.adopt(member, kMemberHolders); });
}

}  // namespace trn
