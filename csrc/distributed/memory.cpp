// See memory.h.
#include "memory.h"

#include "runtime/graph_schedule.h"
#include "runtime/host.h"

namespace trn {

at::Tensor borrow(const at::Tensor& tensor, Access access, const char* op) {
  TORCH_CHECK(tensor.defined(), op, ": an undefined tensor");
  TORCH_CHECK(tensor.layout() == at::kStrided, op, ": a ", tensor.layout(),
              " tensor: collectives take dense ones, so call to_dense() first");
  const bool of_graph = tensor.is_cpu() && GraphSchedule::current() != nullptr;
  TORCH_CHECK(of_graph || tensor.is_privateuseone(), op, ": a tensor on ", tensor.device(),
              " in a group whose backend is for ", c10::Device(kTrn).type(),
              ": move it with .to(), or make the group with a backend for each device, as in "
              "init_process_group(\"cpu:gloo,trn:trn\")");
  TORCH_CHECK(tensor.is_non_overlapping_and_dense(), op, ": tensors must be contiguous, got sizes ",
              tensor.sizes(), " with strides ", tensor.strides(), ": call contiguous() first");
  TORCH_CHECK(host().type == c10::kCPU, op, ": TRN_EMU_HOST is not the CPU: collectives run on ",
              "tensors in host memory only. Unset the variable");
  return of_graph ? tensor : host_alias(tensor, access);
}

at::Tensor borrow_contiguous(const at::Tensor& tensor, Access access, const char* op) {
  at::Tensor memory = borrow(tensor, access, op);
  TORCH_CHECK(tensor.is_contiguous(), op, ": tensors must be contiguous, got sizes ",
              tensor.sizes(), " with strides ", tensor.strides(), ": call contiguous() first");
  return memory;
}

Borrowed borrow(const std::vector<at::Tensor>& tensors, Access access, const char* op) {
  TORCH_CHECK(!tensors.empty(), op, ": no tensors");
  Borrowed all{{}, tensors[0].device()};
  for (const at::Tensor& tensor : tensors) {
    all.memory.push_back(borrow(tensor, access, op));
    TORCH_CHECK(tensor.device() == all.device, op, ": tensors on ", tensor.device(), " and ",
                all.device, ": a rank works on one device");
  }
  return all;
}

}  // namespace trn
