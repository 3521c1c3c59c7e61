// One matrix product inside gemm, and the ways to compute it that gemm.cpp chooses from.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm.h"
#include "kernels.h"
#include "packing.h"

namespace trn::numerics {

struct Product {
  int64_t m, n, k;
  Lines a, b;
  Result c;  // data and batch_stride are those of one matrix
  float alpha, beta;
  Addend addend;
  uint64_t first_index;
  bool plain_result;  // float32, contiguous rows and nothing to add: tiles go straight to c
};

// A tile of c: with these, the blocks of a, b and c that it takes stay in the second-level cache.
constexpr int64_t most_tile_rows = 96;
constexpr int64_t most_tile_columns = 256;

// The streamed operand's panels as items of nearly the same number of them: all threads busy with
// as many items, none larger than `most` panels.
struct Items {
  int64_t panels, count;

  Items(int64_t all, int64_t most, int64_t threads)
      : panels(all),
        count(ceil_div(std::max(ceil_div(all, most), std::min(threads, all)), threads) * threads) {
    count = std::min(count, panels);
  }
  int64_t first(int64_t item) const { return panels * item / count; }
  int64_t largest() const { return ceil_div(panels, count); }
};

// Sums of rows [i0, i0 + rows), columns [j0, j0 + cols) to the result.
void finish(const Kernels& kernel, const Product& q, int64_t i0, int64_t rows, int64_t j0,
            int64_t cols, const float* sums, int64_t stride);

// A single tile of rows: b is packed a few k at a time and multiplied at once, as it is read only
// here.
void multiply_thin(const Product& q, int64_t threads);

// A few rows by lines that are contiguous along k: a line is rounded and multiplied at once, where
// packing would cost more than the product.
void multiply_lines(const Product& q, int64_t threads);

}  // namespace trn::numerics
