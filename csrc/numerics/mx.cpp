// MX quantisation of matrices: scale rules, and the split over blocks and threads.
// Sources: see mx.h.
#include "mx.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "integers.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace trn::numerics {
namespace {

// Added to the bits of a float32, so that its exponent is the logarithm.
uint32_t rounding_bits(ScaleLog2 log2, const FloatFormat& f) {
  switch (log2) {
    case ScaleLog2::floor:
      return 0;
    case ScaleLog2::ceil:
      return 0x7fffff;  // one more unless a power of two
    case ScaleLog2::nearest:
      return 1u << (22 - f.mantissa_bits);
  }
  return 0;
}

}  // namespace

MxConstants mx_constants(const MxSpec& spec) {
  const FloatFormat& f = element_format(spec.element);
  const ScaleRow rule = scale_row(spec.rule);
  const bool share = rule.of == ScaleOf::share;
  MxConstants c;
  c.scale_factor = share ? 1.0f / reference::decode(f, f.max_code()) : 1.0f;
  c.scale_round = rounding_bits(rule.log2, f);
  c.scale_subtract = (share ? 0 : f.max_exponent()) - rule.raised;
  c.mantissa_shift = 23 - f.mantissa_bits;
  c.min_normal_bits = static_cast<uint32_t>(f.min_exponent() + 127) << 23;
  c.max_bits = std::bit_cast<uint32_t>(reference::decode(f, f.max_code()));
  c.nan_code = f.nan_code();
  // What fills no byte, or is no sign and magnitude, becomes so in finish_codes.
  c.sign_shift = static_cast<uint32_t>(codes_a_byte(spec.element) == 2 ? 28 : 24);
  c.through_bf16 = spec.through_bf16;
  c.stochastic = spec.rounding.mode == RoundingMode::stochastic;
  c.seed = spec.rounding.seed;
  c.offset = spec.rounding.offset;
  return c;
}

namespace {

const char* at(const MatrixView& x, int64_t row, int64_t col) {
  return static_cast<const char*>(x.data) +
         (row * x.row_stride + col * x.col_stride) * static_cast<int64_t>(size_of(x.dtype));
}

size_t stored_bytes(Output out) {
  switch (out) {
    case Output::codes8:
    case Output::codes4:
      return 1;
    case Output::bfloat16:
    case Output::float16:
      return 2;
    case Output::float32:
    case Output::bf16_pairs:
      break;
  }
  return 4;
}

// Outputs along the blocked axis that `count` elements take.
int64_t stored_count(Output out, int64_t count) {
  return out == Output::codes4 ? (count + 1) / 2 : count;
}

struct Target {
  Output out;
  char* y;
  int64_t y_row_stride;
  uint8_t* scales;  // may be null
  int64_t scales_row_stride;

  void* at(int64_t row, int64_t col) const {
    return y + (row * y_row_stride + col) * static_cast<int64_t>(stored_bytes(out));
  }
};

constexpr int64_t elements_a_thread = 16384;

int64_t grain_of(int64_t elements_an_item) {
  return std::max<int64_t>(1, elements_a_thread / std::max<int64_t>(1, elements_an_item));
}

// The 32 rows of one group, for mx_columns.
struct GroupRows {
  const void* rows[32];
  uint64_t indices[32];
};

GroupRows rows_of_group(const MatrixView& x, const MxSpec& spec, int64_t first, int64_t col) {
  GroupRows g;
  for (int64_t i = 0; i < 32; ++i) {
    const bool together = spec.grouping == Grouping::contiguous;
    const int64_t row = first + (together ? i : i / 8 * 128 + i % 8);
    g.rows[i] = row < x.rows ? at(x, row, col) : nullptr;
    g.indices[i] = spec.first_index + static_cast<uint64_t>(row * x.cols + col);
  }
  return g;
}

int64_t first_of_group(Grouping grouping, int64_t group) {
  return grouping == Grouping::contiguous ? group * 32 : group / 16 * 512 + group % 16 * 8;
}

// Blocks down the columns; col_stride is 1.
void run_columns(const MatrixView& x, const MxSpec& spec, const Target& target) {
  const Kernels& kernel = kernels();
  const MxConstants constants = mx_constants(spec);
  const int64_t groups = scale_count(x.rows, spec.grouping);
  const int64_t strip = std::min<int64_t>(x.cols, 2048);
  const int64_t strips = (x.cols + strip - 1) / strip;
  parallel_for(0, groups * strips, grain_of(32 * strip), [&](int64_t lo, int64_t hi) {
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t group = item / strips, col = item % strips * strip;
      const int64_t first = first_of_group(spec.grouping, group);
      const GroupRows g = rows_of_group(x, spec, first, col);
      const ColumnDestination d{target.at(stored_count(target.out, first), col),
                                target.y_row_stride, 0, 0};
      uint8_t* scales = target.scales == nullptr
                            ? nullptr
                            : target.scales + group * target.scales_row_stride + col;
      kernel.mx_columns(constants, x.dtype, g.rows, g.indices, std::min(strip, x.cols - col),
                        spec.grouping, target.out, d, scales);
    }
  });
}

// Blocks along the rows, contiguous grouping; col_stride is 1.
void run_rows(const MatrixView& x, const MxSpec& spec, const Target& target) {
  const Kernels& kernel = kernels();
  const MxConstants constants = mx_constants(spec);
  // A long row is cut at a multiple of 32 (of 64, so that random groups stay whole).
  const int64_t piece = std::min<int64_t>(x.cols, 8192);
  const int64_t pieces = (x.cols + piece - 1) / piece;
  parallel_for(0, x.rows * pieces, grain_of(piece), [&](int64_t lo, int64_t hi) {
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t row = item / pieces, col = item % pieces * piece;
      uint8_t* scales = target.scales == nullptr
                            ? nullptr
                            : target.scales + row * target.scales_row_stride + col / 32;
      kernel.mx_row(constants, x.dtype, at(x, row, col), std::min(piece, x.cols - col),
                    spec.first_index + static_cast<uint64_t>(row * x.cols + col), target.out,
                    target.at(row, stored_count(target.out, col)), scales);
    }
  });
}

// Copies a tile into contiguous rows, `size` bytes an element.
template <class T>
void gather_items(const MatrixView& x, int64_t row, int64_t rows, int64_t col, int64_t cols,
                  T* tile, int64_t tile_stride) {
  const T* from = static_cast<const T*>(x.data) + row * x.row_stride + col * x.col_stride;
  constexpr int64_t unit = 16;  // both sides of the transposition stay within a few cache lines
  for (int64_t j0 = 0; j0 < cols; j0 += unit)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = j0; j < std::min(j0 + unit, cols); ++j)
        tile[i * tile_stride + j] = from[i * x.row_stride + j * x.col_stride];
}

void gather(const MatrixView& x, int64_t row, int64_t rows, int64_t col, int64_t cols, void* tile,
            int64_t tile_stride) {
  if (x.dtype == DType::float32)
    gather_items(x, row, rows, col, cols, static_cast<uint32_t*>(tile), tile_stride);
  else
    gather_items(x, row, rows, col, cols, static_cast<uint16_t*>(tile), tile_stride);
}

// Blocks along the rows, any strides and grouping: tile by tile through scratch.
void run_gathered_rows(const MatrixView& x, const MxSpec& spec, const Target& target) {
  const Kernels& kernel = kernels();
  const MxConstants constants = mx_constants(spec);
  constexpr int64_t tile_rows = 32, tile_cols = 512;
  const int64_t across = (x.cols + tile_cols - 1) / tile_cols;
  const int64_t down = (x.rows + tile_rows - 1) / tile_rows;
  const size_t size = size_of(x.dtype), out_size = stored_bytes(target.out);
  const bool wrapped = spec.grouping == Grouping::wrapped;
  parallel_for(0, across * down, grain_of(tile_rows * tile_cols), [&](int64_t lo, int64_t hi) {
    Scratch<char> tile(static_cast<size_t>(tile_rows * tile_cols) * size);
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t row0 = item / across * tile_rows, col = item % across * tile_cols;
      const int64_t rows = std::min(tile_rows, x.rows - row0);
      const int64_t cols = std::min(tile_cols, x.cols - col);
      std::memset(tile.get(), 0, static_cast<size_t>(tile_rows * tile_cols) * size);
      gather(x, row0, rows, col, cols, tile.get(), tile_cols);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = row0 + i;
        const char* values = tile.get() + static_cast<size_t>(i * tile_cols) * size;
        const uint64_t index = spec.first_index + static_cast<uint64_t>(row * x.cols + col);
        char* y = static_cast<char*>(target.at(row, stored_count(target.out, col)));
        if (!wrapped) {
          uint8_t* scales = target.scales == nullptr
                                ? nullptr
                                : target.scales + row * target.scales_row_stride + col / 32;
          kernel.mx_row(constants, x.dtype, values, cols, index, target.out, y, scales);
          continue;
        }
        // The columns kernel sees the row of 512 as a column of its own: 32 rows, one wide.
        for (int64_t group = 0; group < 16; ++group) {
          GroupRows g;
          for (int64_t e = 0; e < 32; ++e) {
            const int64_t k = group * 8 + e / 8 * 128 + e % 8;
            g.rows[e] = k < cols ? values + static_cast<size_t>(k) * size : nullptr;
            g.indices[e] = index + static_cast<uint64_t>(k);
          }
          const ColumnDestination d{
              y + static_cast<size_t>(stored_count(target.out, group * 8)) * out_size, 1, 0, 0};
          uint8_t* scale = target.scales == nullptr
                               ? nullptr
                               : target.scales + row * target.scales_row_stride + col / 32 + group;
          kernel.mx_columns(constants, x.dtype, g.rows, g.indices, 1, spec.grouping, target.out, d,
                            scale);
        }
      }
    }
  });
}

// Blocks down the columns, any strides: strips through scratch.
void run_gathered_columns(const MatrixView& x, const MxSpec& spec, const Target& target) {
  const Kernels& kernel = kernels();
  const MxConstants constants = mx_constants(spec);
  constexpr int64_t strip = 128;
  const int64_t groups = scale_count(x.rows, spec.grouping);
  const int64_t strips = (x.cols + strip - 1) / strip;
  const size_t size = size_of(x.dtype);
  parallel_for(0, groups * strips, grain_of(32 * strip), [&](int64_t lo, int64_t hi) {
    Scratch<char> tile(static_cast<size_t>(32 * strip) * size);
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t group = item / strips, col = item % strips * strip;
      const int64_t width = std::min(strip, x.cols - col);
      const int64_t first = first_of_group(spec.grouping, group);
      GroupRows g = rows_of_group(x, spec, first, col);
      const int64_t runs = spec.grouping == Grouping::contiguous ? 1 : 4, length = 32 / runs;
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t row = first + run * 128;
        const int64_t rows = std::clamp<int64_t>(x.rows - row, 0, length);
        char* part = tile.get() + static_cast<size_t>(run * length * strip) * size;
        gather(x, row, rows, col, width, part, strip);
        for (int64_t i = 0; i < rows; ++i)
          g.rows[run * length + i] = part + static_cast<size_t>(i * strip) * size;
      }
      const ColumnDestination d{target.at(stored_count(target.out, first), col),
                                target.y_row_stride, 0, 0};
      uint8_t* scales = target.scales == nullptr
                            ? nullptr
                            : target.scales + group * target.scales_row_stride + col;
      kernel.mx_columns(constants, x.dtype, g.rows, g.indices, width, spec.grouping, target.out, d,
                        scales);
    }
  });
}

void run(const MatrixView& x, int axis, const MxSpec& spec, const Target& target) {
  if (x.rows == 0 || x.cols == 0) return;
  const bool rows_contiguous = x.col_stride == 1 || x.cols == 1;
  if (axis == 0) {
    rows_contiguous ? run_columns(x, spec, target) : run_gathered_columns(x, spec, target);
  } else {
    rows_contiguous&& spec.grouping == Grouping::contiguous ? run_rows(x, spec, target)
                                                            : run_gathered_rows(x, spec, target);
  }
}

// The kernels give codes as a sign in the high bit and a magnitude.
void finish_codes(const FloatFormat& f, uint8_t* codes, int64_t row_stride, int64_t rows,
                  int64_t cols) {
  const bool integer = f.specials == Specials::integer;
  if (f.bits() == 8 && !integer) return;
  parallel_for(0, rows, grain_of(cols), [&](int64_t lo, int64_t hi) {
    for (int64_t row = lo; row < hi; ++row) {
      uint8_t* at = codes + row * row_stride;
      for (int64_t j = 0; j < cols; ++j)
        at[j] = integer ? complement_of(at[j])
                        : static_cast<uint8_t>((at[j] & 0x80) >> (8 - f.bits()) | (at[j] & 0x7f));
    }
  });
}

Output value_output(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return Output::float32;
    case DType::bfloat16:
      return Output::bfloat16;
    case DType::float16:
      break;
  }
  return Output::float16;
}

}  // namespace

void quantize(const MatrixView& x, int axis, const MxSpec& spec, uint8_t* codes,
              int64_t codes_row_stride, uint8_t* scales, int64_t scales_row_stride) {
  const Output out = codes_a_byte(spec.element) == 2 ? Output::codes4 : Output::codes8;
  run(x, axis, spec,
      {out, reinterpret_cast<char*>(codes), codes_row_stride, scales, scales_row_stride});
  if (out == Output::codes8)
    finish_codes(element_format(spec.element), codes, codes_row_stride, x.rows, x.cols);
}

void quantize_dequantize(const MatrixView& x, int axis, const MxSpec& spec, DType out_dtype,
                         void* y, int64_t y_row_stride) {
  run(x, axis, spec, {value_output(out_dtype), static_cast<char*>(y), y_row_stride, nullptr, 0});
  if (element_format(spec.element).specials != Specials::integer) return;
  parallel_for(0, x.rows, grain_of(x.cols), [&](int64_t lo, int64_t hi) {
    for (int64_t row = lo; row < hi; ++row) {
      if (out_dtype == DType::float32)
        one_zero(static_cast<float*>(y) + row * y_row_stride, x.cols);
      else
        one_zero(static_cast<uint16_t*>(y) + row * y_row_stride, x.cols);
    }
  });
}

namespace {

constexpr int64_t piece = 512;  // of a row, decoded at a time

void decode_integers(const FloatFormat& f, const uint8_t* codes, float* scales, int64_t count,
                     DType out, void* y) {
  for (int64_t j = 0; j < count; ++j) {
    const float value = integer_value(f, codes[j]) * scales[j];
    scales[j] = value != value ? std::bit_cast<float>(0x7fc00000u) : value;
  }
  kernels().convert(DType::float32, scales, out, y, count, {}, 0);
}

}  // namespace

void dequantize(const uint8_t* codes, int64_t codes_row_stride, const uint8_t* scales,
                int64_t scales_row_stride, int axis, Element element, Grouping grouping,
                int64_t rows, int64_t cols, DType out_dtype, void* y, int64_t y_row_stride) {
  const Kernels& kernel = kernels();
  const FloatFormat& f = element_format(element);
  const bool two_a_byte = codes_a_byte(element) == 2;
  const auto group_of = [grouping](int64_t k) {
    return grouping == Grouping::contiguous ? k / 32 : k / 512 * 16 + k % 128 / 8;
  };
  parallel_for(0, rows, grain_of(cols), [&](int64_t lo, int64_t hi) {
    uint8_t unpacked[piece];
    float factors[piece];
    for (int64_t row = lo; row < hi; ++row)
      for (int64_t col = 0; col < cols; col += piece) {
        const int64_t count = std::min(piece, cols - col);
        const uint8_t* from = codes + row * codes_row_stride + col;
        if (axis == 0) {
          const uint8_t* scale = scales + group_of(row) * scales_row_stride + col;
          for (int64_t j = 0; j < count; ++j) factors[j] = decode_e8m0(scale[j]);
          if (two_a_byte) {
            from = codes + row / 2 * codes_row_stride + col;
            const int shift = row % 2 == 0 ? 0 : 4;
            for (int64_t j = 0; j < count; ++j)
              unpacked[j] = static_cast<uint8_t>(from[j] >> shift & 15);
            from = unpacked;
          }
        } else {
          const uint8_t* scale = scales + row * scales_row_stride;
          for (int64_t j = 0; j < count; j += 8) {  // 8 consecutive share a scale in both groupings
            const float factor = decode_e8m0(scale[group_of(col + j)]);
            for (int64_t e = j; e < std::min(j + 8, count); ++e) factors[e] = factor;
          }
          if (two_a_byte) {
            from = codes + row * codes_row_stride + col / 2;
            for (int64_t j = 0; j < count; ++j)
              unpacked[j] = static_cast<uint8_t>(from[j / 2] >> (j % 2 * 4) & 15);
            from = unpacked;
          }
        }
        char* to = static_cast<char*>(y) +
                   (row * y_row_stride + col) * static_cast<int64_t>(size_of(out_dtype));
        if (f.specials == Specials::integer)
          decode_integers(f, from, factors, count, out_dtype, to);
        else
          kernel.mx_decode_row(f, from, factors, count, out_dtype, to);
      }
  });
}

}  // namespace trn::numerics
