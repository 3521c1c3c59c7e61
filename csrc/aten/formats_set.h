// A set of number formats, as bits.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>

namespace trn {

class Formats {
 public:
  constexpr Formats(std::initializer_list<c10::ScalarType> formats) {
    for (const c10::ScalarType format : formats) bits_ |= bit(format);
  }
  constexpr bool has(c10::ScalarType format) const { return (bits_ & bit(format)) != 0; }
  constexpr Formats operator|(Formats other) const {
    other.bits_ |= bits_;
    return other;
  }

 private:
  static constexpr uint64_t bit(c10::ScalarType format) { return uint64_t(1) << unsigned(format); }
  uint64_t bits_ = 0;
};

}  // namespace trn
