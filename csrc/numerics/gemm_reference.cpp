// What gemm computes, element by element: the twin that it is compared with.
#include <vector>

#include "gemm.h"

namespace trn::numerics {
namespace reference {
namespace {

float load(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::float32:
      return static_cast<const float*>(data)[i];
    case DType::bfloat16:
      return decode(format(Format::bfloat16), static_cast<const uint16_t*>(data)[i]);
    case DType::float16:
      return decode(format(Format::float16), static_cast<const uint16_t*>(data)[i]);
  }
  return 0;
}

// The rounded operand, row-major.
std::vector<float> rounded(const Operand& x, int64_t batch, int64_t rows, int64_t cols,
                           int k_axis) {
  std::vector<float> values(static_cast<size_t>(rows * cols));
  const MatrixView view{static_cast<const char*>(x.data) +
                            batch * x.batch_stride * static_cast<int64_t>(size_of(x.dtype)),
                        x.dtype,
                        rows,
                        cols,
                        x.row_stride,
                        x.col_stride};
  if (x.rounding.kind == OperandRounding::Kind::mx) {
    const int64_t groups = scale_count(k_axis == 0 ? rows : cols, x.rounding.mx.grouping);
    std::vector<uint8_t> codes(static_cast<size_t>(rows * cols + rows + cols));
    std::vector<uint8_t> scales(static_cast<size_t>(groups * (k_axis == 0 ? cols : rows)));
    const int64_t scales_stride = k_axis == 0 ? cols : groups;
    reference::quantize(view, k_axis, x.rounding.mx, codes.data(), cols, scales.data(),
                        scales_stride);
    reference::dequantize(codes.data(), cols, scales.data(), scales_stride, k_axis,
                          x.rounding.mx.element, x.rounding.mx.grouping, rows, cols, DType::float32,
                          values.data(), cols);
    return values;
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      float v = load(x.dtype, view.data, i * x.row_stride + j * x.col_stride);
      const auto to = [&v](Format id) {
        v = decode(format(id), encode(format(id), v, Overflow::special));
      };
      if (x.rounding.kind == OperandRounding::Kind::bfloat16) to(Format::bfloat16);
      if (x.rounding.kind == OperandRounding::Kind::tfloat32 && x.dtype == DType::float32)
        to(Format::tfloat32);
      values[static_cast<size_t>(i * cols + j)] = v;
    }
  return values;
}

}  // namespace

void gemm(int64_t batch, int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b,
          const Result& c, float alpha, float beta, const Addend& addend) {
  for (int64_t q = 0; q < batch; ++q) {
    const std::vector<float> left = rounded(a, q, m, k, 1), right = rounded(b, q, k, n, 0);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        float sum = 0;
        for (int64_t e = 0; e < k; ++e)
          sum += left[static_cast<size_t>(i * k + e)] * right[static_cast<size_t>(e * n + j)];
        float v = alpha * sum;
        if (addend.data != nullptr && beta != 0)
          v += beta * load(addend.dtype, addend.data,
                           q * addend.batch_stride + i * addend.row_stride + j * addend.col_stride);
        const int64_t at = q * c.batch_stride + i * c.row_stride + j * c.col_stride;
        if (c.dtype == DType::float32) {
          static_cast<float*>(c.data)[at] = v;
          continue;
        }
        const FloatFormat& f =
            format(c.dtype == DType::bfloat16 ? Format::bfloat16 : Format::float16);
        const uint64_t index = static_cast<uint64_t>((q * m + i) * n + j);
        const uint32_t code =
            c.rounding.mode == RoundingMode::stochastic
                ? encode_stochastic(f, v, Overflow::special,
                                    random_word(c.rounding.seed, c.rounding.offset, index))
                : encode(f, v, Overflow::special);
        static_cast<uint16_t*>(c.data)[at] = static_cast<uint16_t>(code);
      }
  }
}

}  // namespace reference
}  // namespace trn::numerics
