// See step_product.h.
#include "step_product.h"

#include "numerics/kernels.h"
#include "operands.h"
#include "recurrent_steps.h"
#include "weight_copies.h"

namespace trn {

std::optional<StepWeight> StepWeight::of(const at::Tensor& weight, int64_t rows) {
  const OperandFormats formats = formats_of(current_policy(), kByWeight);
  StepWeight made{{}, {}, weight.size(0), operand_rounding(formats.first, at::kFloat)};
  if (!numerics::is_packable(made.of_rows)) return std::nullopt;
  const bool by_columns = rows <= numerics::most_dots && weight.stride(0) == 1;
  if (by_columns && weight.stride(1) != weight.size(0)) return std::nullopt;
  for (int reads = 0; reads < 2; ++reads) {
    if (by_columns)
      made.columns = rounded_copy(weight, formats.second, 0);
    else
      made.panels = packed_copy(weight, formats.second);
  }
  if (!made.columns.defined() && !made.panels.defined()) return std::nullopt;
  return made;
}

void StepProduct::pack(const at::Tensor& x, int64_t lo, int64_t hi) {
  if (!weight_.panels.defined()) return;
  for (int64_t first = 0; first < weight_.k; first += shape_.width)
    packed_[turn_].pack(x.const_data_ptr<float>(), first + lo, hi - lo);
  packs_ = true;
}

void StepProduct::multiply(const float* x, numerics::PackedLeft* packed, float* to,
                           const numerics::ThenUnits& then) const {
  if (weight_.panels.defined()) {
    const auto* panels = static_cast<const uint32_t*>(weight_.panels.const_data_ptr());
    numerics::GateProduct{shape_, weight_.k, weight_.of_rows, panels, to}.run(x, packed, then);
  } else {
    const auto* columns = static_cast<const uint16_t*>(weight_.columns.const_data_ptr());
    numerics::GateDots{shape_, weight_.k, weight_.of_rows, columns, to}.run(x, then);
  }
}

}  // namespace trn
