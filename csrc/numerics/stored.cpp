// See stored.h. A panel of columns is dequantised and transposed 512 k's at a time, in cache; for a
// few rows a column is dequantised and multiplied at once.
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

// Of an element format: what each scale is, and what each code of an integer stands for.
struct Values {
  FloatFormat format;
  float scale[256];
  float integer[256];

  explicit Values(Element element) : format(element_format(element)) {
    for (int i = 0; i < 256; ++i) {
      scale[i] = decode_e8m0(static_cast<uint8_t>(i));
      integer[i] = are_integers() ? reference::decode(format, static_cast<uint32_t>(i)) : 0;
    }
  }

  bool are_integers() const { return format.specials == Specials::integer; }

  void widen(bool two_a_byte, const uint8_t* codes, const float* scales, int64_t blocks,
             float* y) const {
    if (!are_integers())
      return kernels().mx_widen_blocks(format, two_a_byte, codes, scales, blocks, y);
    for (int64_t i = 0; i < blocks * 32; ++i) y[i] = integer[codes[i]] * scales[i / 32];
  }
};

// k [k0, k0 + count) of column j in float32.
void widen_column(const StoredMx& b, const Values& values, int64_t j, int64_t k0, int64_t count,
                  float* y) {
  const int together = codes_a_byte(b.element);
  const uint8_t* codes = b.codes + j * b.column_bytes + k0 / together;
  const uint8_t* scales = b.scales + j * b.column_scales + k0 / 32;
  const int64_t blocks = count / 32;
  float factors[k_at_once / 32];
  for (int64_t block = 0; block < blocks; ++block) factors[block] = values.scale[scales[block]];
  values.widen(together == 2, codes, factors, blocks, y);
  if (const int64_t done = blocks * 32; done < count)
    dequantize(codes + done / together, b.column_bytes, scales + blocks, b.column_scales, 1,
               b.element, Grouping::contiguous, 1, count - done, DType::float32, y + done, count);
}

// k [k0, k0 + count) of columns [j0, j0 + columns) as [count, panel_columns] in float32.
void widen_panel(const Kernels& kernel, const StoredMx& b, const Values& values, int64_t j0,
                 int64_t columns, int64_t k0, int64_t count, uint32_t* panel) {
  constexpr int64_t line = k_at_once + 16;  // a power of two would share cache sets
  float lines[most_columns * line];
  const int64_t width = kernel.panel_columns;
  std::fill(lines + columns * line, lines + width * line, 0.0f);
  for (int64_t j = 0; j < columns; ++j)
    widen_column(b, values, j0 + j, k0, count, lines + j * line);
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

// As gemm multiplies lines that are contiguous along k.
void multiply_columns(int64_t m, int64_t n, int64_t k, const float* a, const StoredMx& b,
                      const Result& c) {
  static_assert(k_at_once == piece_k);  // sums are added up after as many
  const Kernels& kernel = kernels();
  const Values values(b.element);
  constexpr int64_t each = 64;
  parallel_for(0, ceil_div(n, each), 1, [&](int64_t lo, int64_t hi) {
    float words[k_at_once];
    float sums[most_dots * each];
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t j0 = item * each, columns = std::min(each, n - j0);
      for (int64_t j = 0; j < columns; ++j) {
        float line[most_dots] = {};
        for (int64_t k0 = 0; k0 < k; k0 += k_at_once) {
          const int64_t count = std::min(k_at_once, k - k0);
          widen_column(b, values, j0 + j, k0, count, words);
          kernel.dots(m, count, a + k0, k, Elementwise::none, DType::float32, words, line);
        }
        for (int64_t i = 0; i < m; ++i) sums[i * each + j] = line[i];
      }
      put(kernel, c, m, n, j0, columns, sums, each);
    }
  });
}

}  // namespace

void gemm_stored(int64_t m, int64_t n, int64_t k, const float* a, const StoredMx& b,
                 const Result& c) {
  const IeeeScope scope;
  if (m <= most_dots) return multiply_columns(m, n, k, a, b, c);
  const Kernels& kernel = kernels();
  const Values values(b.element);
  const Packing p(kernel, false, k);
  const Lines lines{reinterpret_cast<const char*>(a), DType::float32, m, k, k, 1, 0, 0, {}};
  const int64_t tiles = ceil_div(m, kernel.tile_rows), columns = kernel.panel_columns;
  Scratch<uint32_t> left(static_cast<size_t>(tiles * p.a_panel_words()));
  pack_a(p, lines, 0, tiles, left.get());
  parallel_for(0, ceil_div(n, columns), 1, [&](int64_t lo, int64_t hi) {
    alignas(64) uint32_t panel[k_at_once * most_columns];
    alignas(64) float sums[most_stored_rows * most_columns] = {};
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t j0 = item * columns, live = std::min(columns, n - j0);
      for (int64_t k0 = 0; k0 < k; k0 += k_at_once) {
        const int64_t count = std::min(k_at_once, k - k0);
        widen_panel(kernel, b, values, j0, live, k0, count, panel);
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
