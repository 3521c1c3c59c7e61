// The memory of a trn tensor, for a collective: checked, and kept until the collective has ended.
#pragma once

#include <ATen/core/Tensor.h>

#include "aten/host_alias.h"
#include "collectives/transport.h"

#include <vector>

namespace trn {

// A dense trn tensor, any order of dimensions: who reduces or moves it as a whole.
at::Tensor borrow(const at::Tensor& tensor, Access access, const char* op);
// A contiguous one: who cuts it into the ranks' pieces.
at::Tensor borrow_contiguous(const at::Tensor& tensor, Access access, const char* op);

// An alias of each, on one device, which is given back.
struct Borrowed {
  std::vector<at::Tensor> memory;
  c10::Device device;
};
Borrowed borrow(const std::vector<at::Tensor>& tensors, Access access, const char* op);

inline collectives::In in(const at::Tensor& memory) {
  return {static_cast<const std::byte*>(memory.const_data_ptr()), memory.nbytes()};
}
inline collectives::Out out(const at::Tensor& memory) {
  return {static_cast<std::byte*>(memory.mutable_data_ptr()), memory.nbytes()};
}

}  // namespace trn
