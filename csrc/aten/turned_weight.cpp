// See turned_weight.h.
#include "turned_weight.h"

#include "alias.h"
#include "policy.h"
#include "rounding_mode.h"
#include "runtime/hbm.h"
#include "runtime/host.h"

#include <ATen/core/LegacyTypeDispatch.h>

namespace trn {
namespace {

thread_local const TurnedWeight* in_force = nullptr;

// Below, the copy does not pay off: measured with 16 rows on two hosts, AVX-512 and AVX2.
constexpr int64_t kLeastProducts = 8, kLeastElements = 1 << 15, kMostRows = 128;

bool lies_across(const at::Tensor& x) {
  return x.dim() == 2 && x.stride(0) == 1 && x.stride(1) == x.size(0);
}

// A tensor in emulated memory, neither fake nor a subclass's.
bool is_real(const at::Tensor& x) {
  using c10::DispatchKey;
  const auto keys = x.key_set();
  return x.device().type() == at::kPrivateUse1 && !keys.has(DispatchKey::Python) &&
         !keys.has(DispatchKey::Functionalize) && !x.is_neg() &&
         x.unsafeGetTensorImpl()->has_storage() && hbm_device_of(x.storage().data()) >= 0;
}

bool is_as_given(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat && !stochastic_rounding() &&
         operand_formats(current_policy(), MatmulClass::linear).as_given();
}

}  // namespace

TurnedWeight::TurnedWeight(const at::Tensor& weight_t, int64_t rows, int64_t products)
    : previous_(in_force) {
  in_force = this;
  if (products < kLeastProducts || rows > kMostRows || host().foreign || !is_real(weight_t) ||
      !lies_across(weight_t) || weight_t.numel() < kLeastElements || !is_as_given(weight_t))
    return;
  const at::AutoDispatchBelowADInplaceOrView below;
  HostCall call(weight_t.device().index(), "aten::mm");
  const at::Tensor given = call.alias(weight_t);
  const InHbm of_the_host(-1);
  turned_ = given.contiguous();
  weight_t_ = weight_t;
}

TurnedWeight::~TurnedWeight() { in_force = previous_; }

const at::Tensor* TurnedWeight::of(const at::Tensor& operand) noexcept {
  if (in_force == nullptr || !in_force->turned_.defined()) return nullptr;
  const at::Tensor& weight_t = in_force->weight_t_;
  const bool same = operand.unsafeGetTensorImpl() == weight_t.unsafeGetTensorImpl() ||
                    (operand.scalar_type() == at::kFloat && operand.is_alias_of(weight_t) &&
                     operand.storage_offset() == weight_t.storage_offset() &&
                     operand.sizes() == weight_t.sizes() &&
                     operand.strides() == weight_t.strides() && !operand.is_neg());
  return same ? &in_force->turned_ : nullptr;
}

}  // namespace trn
