// The number formats of the chip, and conversions to and from float32. A new format is a row in
// torch_trn_emu/formats/formats.def, which names the sources.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trn::numerics {

enum class Format : uint8_t {
#define TRN_FORMAT(name, exponent_bits, mantissa_bits, specials) name,
#include "../../torch_trn_emu/formats/formats.def"
};

enum class Specials : uint8_t {
  ieee,  // the top exponent holds infinity and NaN
  fn,    // no infinity; all ones is NaN
  none,  // every code is a finite number
  // The same, evenly spaced: an exponent of one bit, whose subnormals and normals are. Codes are
  // two's complement, so there is one zero; encoding never gives the code that has no opposite.
  integer,
};

struct FloatFormat {
  const char* name;
  int exponent_bits;
  int mantissa_bits;
  Specials specials;

  constexpr int bits() const { return 1 + exponent_bits + mantissa_bits; }
  constexpr bool all_numbers() const {
    return specials == Specials::none || specials == Specials::integer;
  }
  constexpr int bias() const {
    return (1 << (exponent_bits - 1)) - (specials == Specials::integer ? 0 : 1);
  }
  constexpr int min_exponent() const { return 1 - bias(); }  // of the smallest normal
  constexpr int max_exponent() const {
    return (1 << exponent_bits) - (specials == Specials::ieee ? 2 : 1) - bias();
  }
  constexpr uint32_t magnitude_mask() const { return (1u << (bits() - 1)) - 1; }
  constexpr uint32_t max_code() const {  // of the largest finite number
    switch (specials) {
      case Specials::ieee:
        return infinity_code() - 1;
      case Specials::fn:
        return magnitude_mask() - 1;
      case Specials::none:
      case Specials::integer:
        break;
    }
    return magnitude_mask();
  }
  // Only where specials == ieee.
  constexpr uint32_t infinity_code() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  // All ones in 8 bits, the quiet bit alone above; 0 stands in where every code is a number.
  constexpr uint32_t nan_code() const {
    if (all_numbers()) return 0;
    return bits() <= 8 ? magnitude_mask() : infinity_code() | (1u << (mantissa_bits - 1));
  }
};

inline constexpr FloatFormat format_table[] = {
// in the order of Format
#define TRN_FORMAT(name, exponent_bits, mantissa_bits, specials) \
  {#name, exponent_bits, mantissa_bits, Specials::specials},
#include "../../torch_trn_emu/formats/formats.def"
};

constexpr const FloatFormat& format(Format id) { return format_table[static_cast<int>(id)]; }

enum class DType : uint8_t { float32, bfloat16, float16 };  // what tensors are stored in

constexpr size_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

enum class Overflow : uint8_t {
  saturate,  // to the largest finite number, infinities too
  special,   // to infinity, or NaN where there is none; a format of numbers alone saturates
};

enum class RoundingMode : uint8_t { nearest_even, stochastic };

// The random bits of stochastic rounding are a function of (seed, offset, element index) alone.
// `offset` tells calls apart: take a fresh one for each.
struct Rounding {
  RoundingMode mode = RoundingMode::nearest_even;
  uint64_t seed = 0;
  uint64_t offset = 0;
};

// float32 to codes, one code a byte, for formats of 8 bits or fewer (in the low bits).
// Subnormals are produced, never flushed. NaN keeps its sign, and is 0 where there is none.
void encode(Format format, const float* x, uint8_t* codes, int64_t count,
            Overflow overflow = Overflow::saturate, Rounding rounding = {});

// Codes to float32, exact.
void decode(Format format, const uint8_t* codes, float* x, int64_t count);

// float32 to the nearest values of a format, as float32: encode and decode in one step, for every
// format.
void round_to(Format format, const float* x, float* y, int64_t count,
              Overflow overflow = Overflow::special, Rounding rounding = {});

// Between storage dtypes, rounding once. Overflow goes to infinity, NaN becomes quiet.
void convert(DType from, const void* x, DType to, void* y, int64_t count, Rounding rounding = {});

// E8M0, the block scale: code c is 2^(c - 127), 255 is NaN. 2^-127 is a float32 subnormal.
float decode_e8m0(uint8_t code);
// The code of a power of two; NaN, infinity, zero, negatives and other numbers give 255.
uint8_t encode_e8m0(float scale);

namespace reference {  // the definitions: obvious rather than fast

uint32_t encode(const FloatFormat& format, float x, Overflow overflow);
// The same with `random_bits` uniform: rounds up in magnitude with the probability that keeps the
// mean.
uint32_t encode_stochastic(const FloatFormat& format, float x, Overflow overflow,
                           uint32_t random_bits);
float decode(const FloatFormat& format, uint32_t code);
// Philox4x32-10: the word that belongs to one element. See rounding.cpp for the layout.
uint32_t random_word(uint64_t seed, uint64_t offset, uint64_t index);

}  // namespace reference
}  // namespace trn::numerics
