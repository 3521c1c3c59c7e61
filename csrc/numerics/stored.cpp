// See stored.h. A panel of columns is dequantised and transposed 512 k's at a time, in cache; for a
// few rows columns are multiplied as they are read.
#include "stored.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "packing.h"
#include "parallel.h"
#include "scratch.h"

namespace trn::numerics {
namespace {

constexpr int64_t k_at_once = 512, most_columns = 32;
constexpr int64_t panel_k = 256;  // a panel of as many stays in cache

StoredMx from(const StoredMx& b, int64_t j, int64_t k0) {
  return {b.codes + j * b.column_bytes + k0 / codes_a_byte(b.element), b.column_bytes,
          b.scales + j * b.column_scales + k0 / block_size, b.column_scales, b.element};
}

// k [k0, k0 + count) of column j in float32.
void widen_column(const Kernels& kernel, const StoredMx& b, int64_t j, int64_t k0, int64_t count,
                  float* y) {
  const StoredMx here = from(b, j, k0);
  const int64_t blocks = count / block_size, done = blocks * block_size;
  kernel.mx_widen(element_format(b.element), here.codes, here.scales, blocks, y);
  if (done == count) return;
  const StoredMx rest = from(here, 0, done);
  dequantize(rest.codes, b.column_bytes, rest.scales, b.column_scales, 1, b.element,
             Grouping::contiguous, 1, count - done, DType::float32, y + done, count);
}

// k [k0, k0 + count) of columns [j0, j0 + columns) as [count, panel_columns] in float32.
void widen_panel(const Kernels& kernel, const StoredMx& b, int64_t j0, int64_t columns, int64_t k0,
                 int64_t count, uint32_t* panel) {
  if (kernel.stored_panel != nullptr && count % block_size == 0 &&
      kernel.stored_panel(from(b, j0, k0), columns, count / block_size, panel))
    return;
  constexpr int64_t line = panel_k + 16;  // a power of two would share cache sets
  float lines[most_columns * line];
  const int64_t width = kernel.panel_columns;
  std::fill(lines + columns * line, lines + width * line, 0.0f);
  for (int64_t j = 0; j < columns; ++j)
    widen_column(kernel, b, j0 + j, k0, count, lines + j * line);
  kernel.transpose(reinterpret_cast<const uint32_t*>(lines), line, width, count, panel, width);
}

void put(const Kernels& kernel, const Result& c, int64_t m, int64_t n, int64_t j0, int64_t count,
         const float* sums, int64_t stride) {
  for (int64_t i = 0; i < m; ++i)
    kernel.finish_row(sums + i * stride, count, 1.0f, 0.0f, DType::float32, nullptr, 0, c.dtype,
                      static_cast<char*>(c.data) +
                          (i * c.row_stride + j0) * static_cast<int64_t>(size_of(c.dtype)),
                      c.rounding, static_cast<uint64_t>(i * n + j0));
}

// sums[i * stored_columns + j] += row i of a by column j0 + j along k [k0, k), a piece at a time.
void add_columns(const Kernels& kernel, int64_t m, int64_t k, const float* a, const StoredMx& b,
                 int64_t j0, int64_t columns, int64_t k0, float* sums) {
  float words[stored_columns * k_at_once];
  for (int64_t at = k0; at < k; at += k_at_once) {
    const int64_t count = std::min(k_at_once, k - at);
    for (int64_t j = 0; j < columns; ++j)
      widen_column(kernel, b, j0 + j, at, count, words + j * k_at_once);
    kernel.dots(m, columns, count, a + at, k, Elementwise::none, DType::float32, words, k_at_once,
                sums, stored_columns);
  }
}

// As gemm multiplies lines that are contiguous along k.
void multiply_columns(int64_t m, int64_t n, int64_t k, const float* a, const StoredMx& b,
                      const Result& c) {
  static_assert(k_at_once == piece_k && k_at_once == piece_blocks * block_size);
  const Kernels& kernel = kernels();
  // A piece with a part of a block is read as a whole.
  const int64_t k0 = k % block_size == 0 ? k : k / k_at_once * k_at_once;
  const auto body = [&](int64_t lo, int64_t hi) {
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t j0 = item * stored_columns, columns = std::min(stored_columns, n - j0);
      float sums[most_dots * stored_columns] = {};
      const bool fast = kernel.stored_dots != nullptr &&
                        kernel.stored_dots(from(b, j0, 0), columns, k0 / block_size, m, a, k, sums);
      if (!fast) std::fill_n(sums, m * stored_columns, 0.0f);
      add_columns(kernel, m, k, a, b, j0, columns, fast ? k0 : 0, sums);
      put(kernel, c, m, n, j0, columns, sums, stored_columns);
    }
  };
  constexpr int64_t worth_a_thread = int64_t{1} << 17;  // codes
  const int64_t items = ceil_div(n, stored_columns);
  parallel_for(0, items, std::max<int64_t>(1, worth_a_thread / (stored_columns * k)), body);
}

}  // namespace

void gemm_stored(int64_t m, int64_t n, int64_t k, const float* a, const StoredMx& b,
                 const Result& c) {
  const IeeeScope scope;
  if (m <= most_dots) return multiply_columns(m, n, k, a, b, c);
  const Kernels& kernel = kernels();
  const Packing p(kernel, false, k);
  const Lines lines{reinterpret_cast<const char*>(a), DType::float32, m, k, k, 1, 0, 0, {}};
  const int64_t tiles = ceil_div(m, kernel.tile_rows), columns = kernel.panel_columns;
  Scratch<uint32_t> left(static_cast<size_t>(tiles * p.a_panel_words()));
  pack_a(p, lines, 0, tiles, left.get());
  parallel_for(0, ceil_div(n, columns), 1, [&](int64_t lo, int64_t hi) {
    alignas(64) uint32_t panel[panel_k * most_columns];
    alignas(64) float sums[most_stored_rows * most_columns] = {};
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t j0 = item * columns, live = std::min(columns, n - j0);
      for (int64_t k0 = 0; k0 < k; k0 += panel_k) {
        const int64_t count = std::min(panel_k, k - k0);
        widen_panel(kernel, b, j0, live, k0, count, panel);
        for (int64_t tile = 0; tile < tiles; ++tile)
          kernel.gemm_float32(std::min(kernel.tile_rows, m - tile * kernel.tile_rows), count,
                              left.get() + tile * p.a_panel_words() + k0 * kernel.tile_rows, false,
                              panel, sums + tile * kernel.tile_rows * columns, columns, k0 > 0);
      }
      put(kernel, c, m, n, j0, live, sums, columns);
    }
  });
}

}  // namespace trn::numerics
