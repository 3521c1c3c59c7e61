// What the sums of a product become.
#include "product.h"

namespace trn::numerics {
namespace {

char* element(const Result& c, int64_t i, int64_t j) {
  return static_cast<char*>(c.data) +
         (i * c.row_stride + j * c.col_stride) * static_cast<int64_t>(size_of(c.dtype));
}

const char* element(const Addend& d, int64_t i, int64_t j) {
  return static_cast<const char*>(d.data) +
         (i * d.row_stride + j * d.col_stride) * static_cast<int64_t>(size_of(d.dtype));
}

}  // namespace

void finish(const Kernels& kernel, const Product& q, int64_t i0, int64_t rows, int64_t j0,
            int64_t cols, const float* sums, int64_t stride) {
  const bool adds = q.addend.data != nullptr && q.beta != 0;
  for (int64_t i = 0; i < rows; ++i) {
    const uint64_t index = q.first_index + static_cast<uint64_t>((i0 + i) * q.n + j0);
    const void* addend = adds ? element(q.addend, i0 + i, j0) : nullptr;
    const auto put = [&](int64_t j, int64_t count, void* y) {
      const void* from =
          adds ? static_cast<const char*>(addend) +
                     j * q.addend.col_stride * static_cast<int64_t>(size_of(q.addend.dtype))
               : nullptr;
      kernel.finish_row(sums + i * stride + j, count, q.alpha, q.beta, q.addend.dtype, from,
                        q.addend.col_stride, q.c.dtype, y, q.c.rounding,
                        index + static_cast<uint64_t>(j));
    };
    if (q.c.col_stride == 1 || cols == 1) {
      put(0, cols, element(q.c, i0 + i, j0));
      continue;
    }
    constexpr int64_t piece = 64;
    uint32_t row[piece];
    for (int64_t j = 0; j < cols; j += piece) {
      const int64_t count = std::min(piece, cols - j);
      put(j, count, row);
      for (int64_t e = 0; e < count; ++e) {
        void* y = element(q.c, i0 + i, j0 + j + e);
        if (q.c.dtype == DType::float32)
          *static_cast<uint32_t*>(y) = row[e];
        else
          *static_cast<uint16_t*>(y) = reinterpret_cast<const uint16_t*>(row)[e];
      }
    }
  }
}

}  // namespace trn::numerics
