// MX block formats: 32 elements along one axis of a matrix share a power-of-two scale (E8M0).
// [mx] OCP Microscaling Formats v1.0, sections 5 and 6.3; [nki] Neuron nki.isa.quantize_mx (NKI >=
// 0.5.0); [nkilib] wrapped layout of the matmul_mxfp8 kernels; [ao] scale modes named as in
// torchao.
#pragma once

#include <cstdint>

#include "formats.h"

namespace trn::numerics {

enum class Element : uint8_t {
#define TRN_ELEMENT(name, codes_dtype) name,
#include "../../torch_trn_emu/formats/formats.def"
};

constexpr const FloatFormat& element_format(Element element) {
  constexpr Format formats[] = {
#define TRN_ELEMENT(name, codes_dtype) Format::name,
#include "../../torch_trn_emu/formats/formats.def"
  };
  return format(formats[static_cast<int>(element)]);
}

// Codes that a byte holds: two of 4 bits, else one, in the low bits.
constexpr int codes_a_byte(Element element) { return element_format(element).bits() == 4 ? 2 : 1; }

// What a block's scale is made from, by the rows of formats.def.
enum class ScaleRule : uint8_t {
#define TRN_SCALE_RULE(name, of, log2, raised) name,
#include "../../torch_trn_emu/formats/formats.def"
};

enum class ScaleOf : uint8_t { amax, share };
enum class ScaleLog2 : uint8_t { floor, ceil, nearest };

struct ScaleRow {
  ScaleOf of;
  ScaleLog2 log2;
  int raised;
};

constexpr ScaleRow scale_row(ScaleRule rule) {
  constexpr ScaleRow rows[] = {
#define TRN_SCALE_RULE(name, of, log2, raised) {ScaleOf::of, ScaleLog2::log2, raised},
#include "../../torch_trn_emu/formats/formats.def"
  };
  return rows[static_cast<int>(rule)];
}

enum class Grouping : uint8_t {
  contiguous,  // 32 consecutive indices
  wrapped,     // in each 512 of the axis, group g is 8g..8g+7 + {0, 128, 256, 384}  [nkilib]
};

struct MxSpec {
  Element element = Element::float8_e4m3fn;
  ScaleRule rule = ScaleRule::trn3;
  Grouping grouping = Grouping::contiguous;
  bool through_bf16 =
      true;                // float32 sources are first rounded to bfloat16: the chip reads 16 bits
  Rounding rounding = {};  // of the elements; the index is first_index + row * cols + col
  uint64_t first_index = 0;  // of the matrix, in a batch of them
};

constexpr int64_t block_size = 32;

// Scales along an axis of k elements. A ragged end is padded with zeros (contiguous: to 32,
// wrapped: to 512).
constexpr int64_t scale_count(int64_t k, Grouping grouping) {
  return grouping == Grouping::contiguous ? (k + 31) / 32 : (k + 511) / 512 * 16;
}

// Any strides, 0 and negative included, in elements.
struct MatrixView {
  const void* data;
  DType dtype;
  int64_t rows, cols;
  int64_t row_stride, col_stride;
};

// Quantises x in blocks along `axis` (0: down the rows, 1: along a row).
//   codes   row-major, one a byte: [rows, cols]. float4_e2m1fn packs two consecutive elements of
//           `axis` in a byte, the first in the low nibble: [rows, ceil(cols/2)] for axis 1,
//           [ceil(rows/2), cols] for axis 0.
//   scales  row-major E8M0: [rows, scale_count(cols)] for axis 1, [scale_count(rows), cols] for
//   axis 0.
// Elements round and saturate. An all-zero block has scale code 0 and keeps its zeros' signs (int8
// has none). A block with a NaN or infinity (after the bfloat16 step) has scale 0xFF and the NaN
// code throughout (0 where the format has none).
void quantize(const MatrixView& x, int axis, const MxSpec& spec, uint8_t* codes,
              int64_t codes_row_stride, uint8_t* scales, int64_t scales_row_stride);

// The values of codes and scales laid out as above; rows and cols count elements. Exact in float32
// (beyond 2^128: infinity). In bfloat16 exact too unless subnormal there, then rounded once.
void dequantize(const uint8_t* codes, int64_t codes_row_stride, const uint8_t* scales,
                int64_t scales_row_stride, int axis, Element element, Grouping grouping,
                int64_t rows, int64_t cols, DType out_dtype, void* y, int64_t y_row_stride);

// dequantize(quantize(x)) in one pass, without codes. y is row-major and may be x itself.
void quantize_dequantize(const MatrixView& x, int axis, const MxSpec& spec, DType out_dtype,
                         void* y, int64_t y_row_stride);

namespace reference {  // the definitions, scalar

void quantize(const MatrixView& x, int axis, const MxSpec& spec, uint8_t* codes,
              int64_t codes_row_stride, uint8_t* scales, int64_t scales_row_stride);
void dequantize(const uint8_t* codes, int64_t codes_row_stride, const uint8_t* scales,
                int64_t scales_row_stride, int axis, Element element, Grouping grouping,
                int64_t rows, int64_t cols, DType out_dtype, void* y, int64_t y_row_stride);

}  // namespace reference
}  // namespace trn::numerics
