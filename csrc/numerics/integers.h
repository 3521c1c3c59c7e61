// Internal: elements that are integers. The kernels work on signs and magnitudes, as of a format of
// floating-point numbers; here are the differences.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "formats.h"

namespace trn::numerics {

// A sign and 7 bits of magnitude as two's complement.
constexpr uint8_t complement_of(uint8_t code) {
  return static_cast<uint8_t>(code & 0x80 ? 0x100 - (code & 0x7f) : code);
}

constexpr float integer_value(const FloatFormat& f, uint8_t code) {
  return static_cast<float>(static_cast<int8_t>(code)) / static_cast<float>(1 << f.mantissa_bits);
}

// Zeros without a sign, in float32, bfloat16 or float16 (uint16_t).
template <class T>
void one_zero(T* y, int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  constexpr Bits negative_zero = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  for (int64_t i = 0; i < count; ++i)
    if (std::bit_cast<Bits>(y[i]) == negative_zero) y[i] = T{};
}

}  // namespace trn::numerics
