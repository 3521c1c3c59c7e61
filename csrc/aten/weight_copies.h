// Rounded copies of weights, for products with a few rows: decoding and the steps of a recurrent
// layer read the same matrix again and again, and rounding it takes longer than the product.
//
// A copy is made when a matrix is read for the second time as it is, with the same version and the
// same format, and goes when its memory is written, lent for writing, given back or resized, or
// when the version or the storage of the tensor is another. Every way from a tensor to its memory
// tells: HostCall and host_alias for writing, the allocator for giving back. What writes past
// torch, by an address, is found by comparing 64 words at every use: a wholesale change is seen, a
// change of a few single elements through a raw address is not.
//
// Copies are memory of the host and no part of the emulated HBM. They take at most a GiB (chosen);
// when it is taken, copies that were not read for the last 4,096 look-ups make room, and else
// matrices are rounded at each use.
#pragma once

#include "policy.h"

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>

namespace trn {

// `weight`, a trn matrix, rounded to `format` along `k_axis`: a bfloat16 matrix of the host with
// the same strides. Undefined where it has no copy.
at::Tensor rounded_copy(const at::Tensor& weight, OperandFormat format, int k_axis);

// The same of a [k, n] as numerics/packed.h has it, for the instruction set in use.
at::Tensor packed_copy(const at::Tensor& weight, OperandFormat format);

// The memory is about to be written, was written, or is given back.
void forget_copies(const void* memory, size_t bytes) noexcept;

// While one lives, the memory may be written at any time.
class WritableSpan {
 public:
  WritableSpan(const void* memory, size_t bytes);
  ~WritableSpan();
  WritableSpan(const WritableSpan&) = delete;
  WritableSpan& operator=(const WritableSpan&) = delete;

 private:
  const uintptr_t begin_, end_;
};

void watch_freed_memory();  // once, at load

// For tests: copies held, their bytes, and uses of copies since the process began.
struct CopyCounts {
  int64_t copies = 0, bytes = 0, uses = 0;
};
CopyCounts copy_counts();

}  // namespace trn
