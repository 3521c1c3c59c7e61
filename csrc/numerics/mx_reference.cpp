// The scalar definition of MX quantisation, which mx.cpp is compared with.
// Sources: see mx.h.
#include <algorithm>
#include <bit>
#include <vector>

#include "mx.h"

namespace trn::numerics {
namespace reference {
namespace {

float load(const MatrixView& x, int64_t row, int64_t col) {
  const int64_t i = row * x.row_stride + col * x.col_stride;
  switch (x.dtype) {
    case DType::float32:
      return static_cast<const float*>(x.data)[i];
    case DType::bfloat16:
      return decode(format(Format::bfloat16), static_cast<const uint16_t*>(x.data)[i]);
    case DType::float16:
      return decode(format(Format::float16), static_cast<const uint16_t*>(x.data)[i]);
  }
  return 0;
}

float power_of_two(int exponent) {  // -149 .. 127
  return exponent >= -126 ? std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23)
                          : std::bit_cast<float>(1u << (exponent + 149));
}

// floor(log2 a) for a > 0.
int floor_log2(float a) {
  int exponent = -149;
  while (exponent < 127 && power_of_two(exponent + 1) <= a) ++exponent;
  return exponent;
}

int ceil_log2(float a) {
  const int below = floor_log2(a);
  return power_of_two(below) == a ? below : below + 1;
}

// floor(log2 a) once a is rounded to the element's mantissa: half a unit in the last place below
// the next power of two reaches it.
int nearest_log2(float a, const FloatFormat& f) {
  const float unit = power_of_two(std::max(floor_log2(a), -126));
  const float near = 1 - 0.5f * power_of_two(-f.mantissa_bits);
  return floor_log2(a) + (a / unit - 1 >= near ? 1 : 0);
}

int log2_of(float a, ScaleLog2 log2, const FloatFormat& f) {
  switch (log2) {
    case ScaleLog2::floor:
      return floor_log2(a);
    case ScaleLog2::ceil:
      return ceil_log2(a);
    case ScaleLog2::nearest:
      return nearest_log2(a, f);
  }
  return 0;
}

uint8_t scale_code(ScaleRule rule, const FloatFormat& f, float a) {
  const ScaleRow row = scale_row(rule);
  const bool share = row.of == ScaleOf::share;
  const float s = share ? a * (1.0f / decode(f, f.max_code())) : a;
  if (s == 0) return 0;
  const int less = share ? 0 : f.max_exponent();
  const int exponent = log2_of(s, row.log2, f) - less + row.raised;
  return static_cast<uint8_t>(std::clamp(exponent, -127, 127) + 127);
}

int64_t index_in_group(Grouping grouping, int64_t group, int64_t i) {
  if (grouping == Grouping::contiguous) return group * 32 + i;
  return group / 16 * 512 + group % 16 * 8 + i / 8 * 128 + i % 8;
}

}  // namespace

void quantize(const MatrixView& x, int axis, const MxSpec& spec, uint8_t* codes,
              int64_t codes_row_stride, uint8_t* scales, int64_t scales_row_stride) {
  const FloatFormat& f = element_format(spec.element);
  const int64_t k = axis == 0 ? x.rows : x.cols, others = axis == 0 ? x.cols : x.rows;
  const bool two_a_byte = codes_a_byte(spec.element) == 2;
  for (int64_t other = 0; other < others; ++other) {
    const auto value = [&](int64_t i) {
      const float v = axis == 0 ? load(x, i, other) : load(x, other, i);
      return spec.through_bf16 && x.dtype == DType::float32
                 ? decode(format(Format::bfloat16),
                          encode(format(Format::bfloat16), v, Overflow::special))
                 : v;
    };
    const auto put = [&](int64_t i, uint32_t code) {
      const int64_t at = two_a_byte ? i / 2 : i;
      uint8_t& byte =
          codes[axis == 0 ? at * codes_row_stride + other : other * codes_row_stride + at];
      if (!two_a_byte)
        byte = static_cast<uint8_t>(code);
      else if (i % 2 == 0)
        byte = static_cast<uint8_t>(code);
      else
        byte = static_cast<uint8_t>(byte | code << 4);
    };
    std::vector<uint32_t> element_codes(static_cast<size_t>(k));
    for (int64_t group = 0; group < scale_count(k, spec.grouping); ++group) {
      float largest = 0;
      bool finite = true;
      for (int64_t i = 0; i < 32; ++i) {
        const int64_t at = index_in_group(spec.grouping, group, i);
        if (at >= k) continue;
        const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(value(at)) << 1 >> 1);
        if (!(magnitude <= 0x1.fffffep127f)) finite = false;
        if (magnitude > largest) largest = magnitude;
      }
      const uint8_t scale = finite ? scale_code(spec.rule, f, largest) : 255;
      scales[axis == 0 ? group * scales_row_stride + other : other * scales_row_stride + group] =
          scale;
      for (int64_t i = 0; i < 32; ++i) {
        const int64_t at = index_in_group(spec.grouping, group, i);
        if (at >= k) continue;
        uint32_t code = f.nan_code();
        if (finite) {
          const float scaled = value(at) * power_of_two(127 - scale);
          const uint64_t index =
              spec.first_index +
              static_cast<uint64_t>(axis == 0 ? at * x.cols + other : other * x.cols + at);
          code =
              spec.rounding.mode == RoundingMode::stochastic
                  ? encode_stochastic(f, scaled, Overflow::saturate,
                                      random_word(spec.rounding.seed, spec.rounding.offset, index))
                  : encode(f, scaled, Overflow::saturate);
        }
        element_codes[static_cast<size_t>(at)] = code;
      }
    }
    for (int64_t i = 0; i < k; ++i) put(i, element_codes[static_cast<size_t>(i)]);
  }
}

void dequantize(const uint8_t* codes, int64_t codes_row_stride, const uint8_t* scales,
                int64_t scales_row_stride, int axis, Element element, Grouping grouping,
                int64_t rows, int64_t cols, DType out_dtype, void* y, int64_t y_row_stride) {
  const FloatFormat& f = element_format(element);
  const bool two_a_byte = codes_a_byte(element) == 2;
  const int64_t k = axis == 0 ? rows : cols, others = axis == 0 ? cols : rows;
  for (int64_t other = 0; other < others; ++other)
    for (int64_t group = 0; group < scale_count(k, grouping); ++group)
      for (int64_t i = 0; i < 32; ++i) {
        const int64_t at = index_in_group(grouping, group, i);
        if (at >= k) continue;
        const int64_t byte_at = two_a_byte ? at / 2 : at;
        const uint8_t byte = codes[axis == 0 ? byte_at * codes_row_stride + other
                                             : other * codes_row_stride + byte_at];
        const uint32_t code = !two_a_byte ? byte : at % 2 == 0 ? byte & 15u : byte >> 4;
        const uint8_t scale = scales[axis == 0 ? group * scales_row_stride + other
                                               : other * scales_row_stride + group];
        float v = decode(f, code) * decode_e8m0(scale);
        if (v != v) v = std::bit_cast<float>(0x7fc00000u);
        const int64_t out = axis == 0 ? at * y_row_stride + other : other * y_row_stride + at;
        if (out_dtype == DType::float32)
          static_cast<float*>(y)[out] = v;
        else
          static_cast<uint16_t*>(y)[out] = static_cast<uint16_t>(
              encode(format(out_dtype == DType::bfloat16 ? Format::bfloat16 : Format::float16), v,
                     Overflow::special));
      }
}

}  // namespace reference
}  // namespace trn::numerics
