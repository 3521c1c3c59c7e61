// The product of each step of a recurrent layer by the same weight, rounded once (fused_steps.cpp).
#pragma once

#include "numerics/packed.h"
#include "policy.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>

#include <atomic>
#include <optional>

namespace trn {

// A weight [k, n] as products with `rows` rows read it: its rounded columns where they are few and
// those are contiguous, else panels.
struct StepWeight {
  at::Tensor panels, columns;
  int64_t k;
  numerics::OperandRounding of_rows;  // of the other operand

  // Of a step's weight under the current policy, which is read often enough to have its copy at
  // once. Nothing where it can have none.
  static std::optional<StepWeight> of(const at::Tensor& weight, int64_t rows);
};

// What follows a product runs in the thread that has the units, below autograd: their part of the
// next step's operand is packed there as well.
class StepProduct {
 public:
  StepProduct(numerics::GateColumns shape, const StepWeight& weight)
      : weight_(weight),
        shape_(shape),
        packed_{{shape.m, weight.k, weight.of_rows}, {shape.m, weight.k, weight.of_rows}} {}

  // to = x weight, then(lo, hi) for units [lo, hi).
  template <class Then>
  void run(const at::Tensor& x, const at::Tensor& to, const Then& then) {
    numerics::PackedLeft* packed = packs_ ? &packed_[turn_] : nullptr;
    turn_ = 1 - turn_;
    packs_ = false;
    multiply(x.const_data_ptr<float>(), packed, to.mutable_data_ptr<float>(),
             [&](int64_t lo, int64_t hi) {
               const at::AutoDispatchBelowADInplaceOrView below;
               then(lo, hi);
             });
  }

  // Of units [lo, hi) of each gate of x, which the next product multiplies.
  void pack(const at::Tensor& x, int64_t lo, int64_t hi);

 private:
  void multiply(const float* x, numerics::PackedLeft* packed, float* to,
                const numerics::ThenUnits& then) const;

  const StepWeight weight_;
  const numerics::GateColumns shape_;
  numerics::PackedLeft packed_[2];  // one is read, the other made
  int turn_ = 0;
  std::atomic<bool> packs_ = false;
};

}  // namespace trn
