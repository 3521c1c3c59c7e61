// Indices of sparse tensors as offsets. Torch's checks of a sparse tensor's arguments are no
// operators: they call this kernel for the indices' device.
#include <ATen/core/Tensor.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>

namespace trn {
namespace {

// indices [sparse_dim, nnz] -> [nnz]
at::Tensor flatten_indices(const at::Tensor& indices, at::IntArrayRef size) {
  at::Tensor flat = indices.select(0, 0);
  for (int64_t dim = 1; dim < indices.size(0); ++dim)
    flat = at::add(at::mul(flat, size[dim]), indices.select(0, dim));
  return flat;
}

}  // namespace
}  // namespace trn

namespace at::native {
// Declared in a header that torch 2.13 and 2.14 do not install.
DECLARE_DISPATCH(at::Tensor (*)(const at::Tensor&, at::IntArrayRef), flatten_indices_stub)
REGISTER_PRIVATEUSE1_DISPATCH(flatten_indices_stub, &trn::flatten_indices)
}  // namespace at::native
