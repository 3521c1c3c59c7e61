// A set of formats as bits, filled once when the device is configured.
#include "missing_dtypes.h"

#include <c10/util/Exception.h>

#include <utility>

namespace trn {
namespace {

constexpr std::pair<const char*, c10::ScalarType> kRecent[] = {
    // the formats that some generations lack
    {"float8_e4m3fn", c10::ScalarType::Float8_e4m3fn},
    {"float8_e8m0fnu", c10::ScalarType::Float8_e8m0fnu},
    {"float4_e2m1fn", c10::ScalarType::Float4_e2m1fn_x2},
};

uint64_t missing = 0;
std::string chip_name;

uint64_t bit(c10::ScalarType dtype) { return uint64_t(1) << unsigned(dtype); }

}  // namespace

void set_missing_dtypes(const std::string& chip, const std::vector<std::string>& names) {
  missing = 0;
  chip_name = chip;
  for (const auto& [name, dtype] : kRecent)
    for (const auto& absent : names)
      if (absent == name) missing |= bit(dtype);
}

void check_chip_has(c10::ScalarType dtype) {
  if (missing == 0 || (missing & bit(dtype)) == 0) return;
  TORCH_CHECK_NOT_IMPLEMENTED(false, chip_name, " has no ", dtype,
                              " (chips.py): it came with trn3. Use --chip trn3 or "
                              "TRN_EMU_CHIP=trn3, or keep the values in bfloat16.");
}

}  // namespace trn
