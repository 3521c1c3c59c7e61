// What the collectives share: describing a Call, checking its tensors, cutting them into pieces.
#pragma once

#include "backend.h"
#include "memory.h"
#include "reduce.h"

namespace trn::calls {

using c10d::OpType;
using collectives::In;
using collectives::Out;
using collectives::Reduction;
using Tensors = std::vector<at::Tensor>;

inline uint64_t bytes_of(const Tensors& tensors) {
  uint64_t total = 0;
  for (const at::Tensor& tensor : tensors) total += tensor.nbytes();
  return total;
}

inline int64_t elements_of(const Tensors& tensors) {
  int64_t total = 0;
  for (const at::Tensor& tensor : tensors) total += tensor.numel();
  return total;
}

inline uint64_t hash_of(const Tensors& tensors) {
  uint64_t hash = tensors.size();
  for (const at::Tensor& tensor : tensors)
    hash = (hash ^ (uint64_t(tensor.numel()) << 8 | uint64_t(tensor.scalar_type()))) *
           0x9E3779B97F4A7C15ull;
  return hash;
}

// A complex tensor reduces as twice as many real ones.
inline c10::ScalarType real(c10::ScalarType dtype) {
  return c10::isComplexType(dtype) ? c10::toRealValueType(dtype) : dtype;
}

template <class Options>
Call call_of(OpType op, const char* name, const Tensors& tensors, const Options& opts) {
  TORCH_CHECK(!tensors.empty(), name, ": no tensors");
  Call call{op, name};
  call.dtype = tensors[0].scalar_type();
  call.elements = elements_of(tensors);
  call.device = tensors[0].device();
  call.timeout = opts.timeout;
  call.async = opts.asyncOp;
  call.priced_bytes = int64_t(bytes_of(tensors));
  call.inputs = tensors;
  return call;
}

inline void reduces(Call& call, const c10d::ReduceOp& op) {
  TORCH_CHECK_VALUE(!c10::isComplexType(call.dtype) || c10d::isComplexViewAsRealAllowed(op),
                    call.name, ": ReduceOp.", name_of(op.op_),
                    " of complex tensors has no meaning");
  reduction(op, real(call.dtype), 1, {});  // now, where it was called
  call.reduce = op;
  call.reduces = true;
  if (op.op_ != c10d::ReduceOp::PREMUL_SUM) return;
  const auto* factor = static_cast<const c10d::PreMulSumSupplement*>(op.supplement_.get());
  call.factor = factor->tensor_factor.defined() ? factor->tensor_factor.item().toDouble()
                                                : factor->double_factor;
}

inline Reduction made(const Call& call, const Meeting& meeting) {
  return reduction(call.reduce, real(call.dtype), meeting.transport.size(), meeting.factors);
}

inline const at::Tensor& only(const Tensors& tensors, const char* name) {
  TORCH_CHECK(tensors.size() == 1, name, ": one tensor a rank, got ", tensors.size());
  return tensors[0];
}

inline void check_root(int64_t root, int size, const char* name) {
  TORCH_CHECK_VALUE(root >= 0 && root < size, name, ": root ", root, " is none of the ", size,
                    " ranks of the group");
}

inline std::vector<In> ins(const Tensors& memory) {
  std::vector<In> all;
  for (const at::Tensor& tensor : memory) all.push_back(in(tensor));
  return all;
}

inline std::vector<Out> outs(const Tensors& memory) {
  std::vector<Out> all;
  for (const at::Tensor& tensor : memory) all.push_back(out(tensor));
  return all;
}

inline std::vector<uint64_t> sizes(const Tensors& memory) {
  std::vector<uint64_t> all;
  for (const at::Tensor& tensor : memory) all.push_back(tensor.nbytes());
  return all;
}

// `whole` in `parts` equal pieces.
inline Tensors pieces(const at::Tensor& whole, int parts, const char* name) {
  TORCH_CHECK_VALUE(whole.numel() % parts == 0, name, ": ", whole.numel(),
                    " elements do not divide among ", parts, " ranks");
  Tensors all;
  const at::Tensor flat = whole.view({-1});
  const int64_t each = whole.numel() / parts;
  for (int r = 0; r < parts; ++r) all.push_back(flat.narrow(0, r * each, each));
  return all;
}

inline void check_dtypes(const Tensors& tensors, c10::ScalarType dtype, const char* name) {
  for (const at::Tensor& tensor : tensors)
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, ": tensors of ", tensor.scalar_type(),
                     " and ", dtype, " in one call");
}

}  // namespace trn::calls
