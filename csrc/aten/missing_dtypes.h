// Formats that the emulated chip does not have: making a tensor of one is an error.
#pragma once

#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

namespace trn {

// By torch's names, "float8_e4m3fn". `chip` is for the text.
void set_missing_dtypes(const std::string& chip, const std::vector<std::string>& names);

// Throws for a format that the chip lacks.
void check_chip_has(c10::ScalarType dtype);

}  // namespace trn
