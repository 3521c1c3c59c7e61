// Format conversions: the scalar definitions, and the entry points of the vector kernels.
// Sources: see formats.h.
#include "formats.h"

#include <bit>

#include "integers.h"
#include "kernels.h"
#include "parallel.h"

namespace trn::numerics {
namespace reference {
namespace {

// |x| = significand * 2^(exponent - 23), for finite x.
struct Parts {
  uint32_t significand;
  int exponent;
};

Parts parts_of(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t fraction = bits & 0x7fffff;
  const int field = static_cast<int>(bits >> 23 & 0xff);
  if (field == 0) return {fraction, -126};
  return {fraction | 0x800000, field - 127};
}

uint32_t with_sign(const FloatFormat& format, float x, uint32_t magnitude) {
  const uint32_t negative = std::bit_cast<uint32_t>(x) >> 31;
  if (format.specials == Specials::integer) return (negative ? -magnitude : magnitude) & 0xff;
  return negative << (format.bits() - 1) | magnitude;
}

uint32_t overflowed(const FloatFormat& format, Overflow overflow) {
  if (overflow == Overflow::saturate || format.all_numbers()) return format.max_code();
  return format.specials == Specials::ieee ? format.infinity_code() : format.nan_code();
}

// round(significand, dropped): the significand without its `dropped` (1 to 31) low bits.
template <class Round>
uint32_t encode_with(const FloatFormat& format, float x, Overflow overflow, Round round) {
  const uint32_t magnitude = std::bit_cast<uint32_t>(x) & 0x7fffffff;
  if (magnitude > 0x7f800000)  // NaN
    return format.all_numbers() ? 0 : with_sign(format, x, format.nan_code());
  if (magnitude == 0x7f800000) return with_sign(format, x, overflowed(format, overflow));

  auto [significand, exponent] = parts_of(x);
  int dropped = 23 - format.mantissa_bits;
  if (exponent < format.min_exponent()) {  // a subnormal of the format
    dropped += format.min_exponent() - exponent;
    exponent = format.min_exponent();
  }
  for (; dropped > 31; --dropped) significand >>= 1;
  // A subnormal has exponent field 0, the first normal 1: the leading bit of a normal significand
  // adds the one, and so does a carry out of rounding.
  const uint32_t field = static_cast<uint32_t>(exponent - format.min_exponent());
  const uint32_t code = (field << format.mantissa_bits) + round(significand, dropped);
  if (code > format.max_code()) return with_sign(format, x, overflowed(format, overflow));
  return with_sign(format, x, code);
}

}  // namespace

uint32_t encode(const FloatFormat& format, float x, Overflow overflow) {
  return encode_with(format, x, overflow, [](uint32_t significand, int dropped) {
    const uint32_t kept = significand >> dropped;
    const uint32_t rest = significand & ((1u << dropped) - 1);
    const uint32_t half = 1u << (dropped - 1);
    return rest > half || (rest == half && (kept & 1)) ? kept + 1 : kept;
  });
}

uint32_t encode_stochastic(const FloatFormat& format, float x, Overflow overflow,
                           uint32_t random_bits) {
  return encode_with(format, x, overflow, [random_bits](uint32_t significand, int dropped) {
    return (significand + (random_bits >> (32 - dropped))) >> dropped;
  });
}

float decode(const FloatFormat& format, uint32_t code) {
  if (format.specials == Specials::integer) {
    const int value = static_cast<int8_t>(code);
    return static_cast<float>(value) / static_cast<float>(1 << format.mantissa_bits);
  }
  const uint32_t magnitude = code & format.magnitude_mask();
  const uint32_t sign = code >> (format.bits() - 1) << 31;
  if (format.specials == Specials::ieee && magnitude == format.infinity_code())
    return std::bit_cast<float>(sign | 0x7f800000);
  if (!format.all_numbers() && magnitude > format.max_code())
    return std::bit_cast<float>(sign | 0x7fc00000);
  const uint32_t field = magnitude >> format.mantissa_bits;
  const uint32_t fraction = magnitude & ((1u << format.mantissa_bits) - 1);
  const uint32_t significand = field == 0 ? fraction : fraction | 1u << format.mantissa_bits;
  const int exponent = format.min_exponent() + (field == 0 ? 0 : static_cast<int>(field) - 1);
  double value = significand;
  for (int e = exponent - format.mantissa_bits; e > 0; --e) value *= 2;
  for (int e = exponent - format.mantissa_bits; e < 0; ++e) value /= 2;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(value)));
}

}  // namespace reference

namespace {

constexpr int64_t grain = 32768;  // elements; a multiple of the 64 of one random group

void to_complement(const FloatFormat& f, uint8_t* codes, int64_t count) {
  if (f.specials != Specials::integer) return;
  for (int64_t i = 0; i < count; ++i) codes[i] = complement_of(codes[i]);
}

}  // namespace

void encode(Format id, const float* x, uint8_t* codes, int64_t count, Overflow overflow,
            Rounding rounding) {
  const Kernels& k = kernels();
  parallel_for(0, count, grain, [&](int64_t lo, int64_t hi) {
    k.encode(format(id), x + lo, codes + lo, hi - lo, overflow, rounding,
             static_cast<uint64_t>(lo));
    to_complement(format(id), codes + lo, hi - lo);
  });
}

void decode(Format id, const uint8_t* codes, float* x, int64_t count) {
  const Kernels& k = kernels();
  const FloatFormat& f = format(id);
  parallel_for(0, count, grain, [&](int64_t lo, int64_t hi) {
    if (f.specials != Specials::integer) return k.decode(f, codes + lo, x + lo, hi - lo);
    for (int64_t i = lo; i < hi; ++i) x[i] = integer_value(f, codes[i]);
  });
}

void round_to(Format id, const float* x, float* y, int64_t count, Overflow overflow,
              Rounding rounding) {
  const Kernels& k = kernels();
  // The same bits without the way through codes, which takes half as long again on AVX2.
  const bool plain = id == Format::bfloat16 && overflow == Overflow::special &&
                     rounding.mode == RoundingMode::nearest_even;
  parallel_for(0, count, grain, [&](int64_t lo, int64_t hi) {
    if (plain) {
      k.round_row(Elementwise::bfloat16, DType::float32, x + lo, hi - lo, Output::float32, y + lo);
      return;
    }
    k.round_to(format(id), x + lo, y + lo, hi - lo, overflow, rounding, static_cast<uint64_t>(lo));
    if (format(id).specials == Specials::integer) one_zero(y + lo, hi - lo);
  });
}

void convert(DType from, const void* x, DType to, void* y, int64_t count, Rounding rounding) {
  const Kernels& k = kernels();
  parallel_for(0, count, grain, [&](int64_t lo, int64_t hi) {
    const size_t first = static_cast<size_t>(lo);
    k.convert(from, static_cast<const char*>(x) + first * size_of(from), to,
              static_cast<char*>(y) + first * size_of(to), hi - lo, rounding,
              static_cast<uint64_t>(lo));
  });
}

float decode_e8m0(uint8_t code) {
  if (code == 255) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

uint8_t encode_e8m0(float scale) {
  const uint32_t bits = std::bit_cast<uint32_t>(scale);
  if (bits == 0x00400000u) return 0;
  const bool power_of_two = bits >> 31 == 0 && (bits & 0x7fffff) == 0 && bits != 0;
  return power_of_two ? static_cast<uint8_t>(bits >> 23) : 255;
}

}  // namespace trn::numerics
