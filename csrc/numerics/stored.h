// Products of a few rows with a matrix that is stored in MX: its codes are read once, and never
// widened in memory.
#pragma once

#include <cstdint>

#include "gemm.h"

namespace trn::numerics {

// [k, n] by columns: `column_bytes` of codes along k, and scales along k, in contiguous blocks.
struct StoredMx {
  const uint8_t* codes;
  int64_t column_bytes;
  const uint8_t* scales;
  int64_t column_scales;
  Element element;
};

constexpr int64_t most_stored_rows = 16;  // more are worth widening it once

// As gemm of a and the dequantised b, bit for bit, were its columns contiguous as those of the
// codes are. a [m, k] float32, contiguous, m at most most_stored_rows; c has contiguous rows. b's
// codes fill whole bytes.
void gemm_stored(int64_t m, int64_t n, int64_t k, const float* a, const StoredMx& b,
                 const Result& c);

}  // namespace trn::numerics
