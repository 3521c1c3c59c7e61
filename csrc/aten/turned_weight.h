// The weight of an LSTM's steps for products in float32 as given. It is read transposed at every
// step, and MKL packs what lies across anew each time, for as long as half of the product takes: a
// copy of contiguous rows is made once for all steps. Sums may be taken in another order, so this
// is for layers alone whose sums are not the CPU's in any case.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace trn {

class TurnedWeight {
 public:
  // While it lives, products of this thread whose second operand is `weight_t`, a trn matrix
  // [k, n], read a copy of the host: where it lies across, `products` of few `rows` follow, and
  // they are not rounded.
  TurnedWeight(const at::Tensor& weight_t, int64_t rows, int64_t products);
  ~TurnedWeight();
  TurnedWeight(const TurnedWeight&) = delete;
  TurnedWeight& operator=(const TurnedWeight&) = delete;

  // The copy that stands for `operand`, or null.
  static const at::Tensor* of(const at::Tensor& operand) noexcept;

 private:
  const TurnedWeight* previous_;
  at::Tensor weight_t_, turned_;
};

}  // namespace trn
