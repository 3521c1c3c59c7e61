// Matrix products whose operands are rounded, or quantised to MX, while they are packed; float32
// sums, one rounding at the end. [nki] nc_matmul, nc_matmul_mx: exact products, float32
// accumulation in PSUM; [mx] section 6.2.
#pragma once

#include <cstdint>

#include "formats.h"
#include "mx.h"

namespace trn::numerics {

struct OperandRounding {
  enum class Kind : uint8_t { none, bfloat16, tfloat32, mx };
  Kind kind = Kind::none;
  MxSpec mx = {};  // blocks run along k, from k = 0
};

// Strides in elements, any sign; 0 repeats.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row_stride, col_stride;
  OperandRounding rounding = {};
  int64_t batch_stride = 0;
};

struct Addend {  // nothing where data is null; a bias row has row_stride 0, a bias column
                 // col_stride 0
  const void* data = nullptr;
  DType dtype = DType::float32;
  int64_t row_stride = 0, col_stride = 0;
  int64_t batch_stride = 0;
};

struct Result {
  void* data;
  DType dtype;
  int64_t row_stride, col_stride = 1;
  int64_t batch_stride = 0;
  Rounding rounding = {};  // index of element (b, i, j): (b * m + i) * n + j
};

// c = alpha * (a b) + beta * addend, a [m, k], b [k, n], c [m, n], for each of `batch` matrices.
//   Every product of rounded operands is exact before it is added, sums are float32 in an
//   unspecified but fixed order (it does not depend on the number of threads), and the result is
//   rounded once. |error| <= gamma_K * sum |a b| with gamma_K = K u / (1 - K u), u = 2^-24, K = k
//   rounded up to even, plus K * 2^-126 where the host's bfloat16 products flush subnormals.
// c may be the addend, element by element. beta == 0 does not read the addend. k == 0 gives
// beta * addend.
void gemm(int64_t batch, int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b,
          const Result& c, float alpha = 1.0f, float beta = 1.0f, const Addend& addend = {});

namespace reference {  // float32 sums in the order of k, one matrix after the other

void gemm(int64_t batch, int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b,
          const Result& c, float alpha = 1.0f, float beta = 1.0f, const Addend& addend = {});

}  // namespace reference
}  // namespace trn::numerics
