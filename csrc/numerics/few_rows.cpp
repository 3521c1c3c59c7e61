// Products of few rows.
#include <algorithm>

#include "parallel.h"
#include "product.h"
#include "scratch.h"

namespace trn::numerics {

void multiply_thin(const Product& q, int64_t threads) {
  const Kernels& kernel = kernels();
  const int64_t k_at_once = q.b.line_stride == 1 ? 64 : 256;
  const Packing whole(kernel, false, q.k, packs_a_across(q.a)), piece(kernel, false, k_at_once);
  const int64_t columns = kernel.panel_columns;
  Scratch<uint32_t> a(static_cast<size_t>(whole.a_panel_words()));
  pack_a(whole, q.a, 0, 1, a.get());
  const Items items(ceil_div(q.n, columns), most_tile_columns / columns, threads);
  const auto body = [&](int64_t lo, int64_t hi) {
    Scratch<uint32_t> b(static_cast<size_t>(items.largest() * piece.b_panel_words()));
    alignas(64) float sums[most_tile_rows * most_tile_columns];
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t first = items.first(item), last = items.first(item + 1);
      const int64_t stride = (last - first) * columns;
      if (q.k == 0) std::fill(sums, sums + q.m * stride, 0.0f);
      for (int64_t k0 = 0; k0 < q.k; k0 += k_at_once) {
        const int64_t count = std::min(k_at_once, q.k - k0);
        pack_b(piece, q.b.part(k0, count), first, last, b.get());
        for (int64_t j = 0; j < last - first; ++j)
          kernel.gemm_float32(q.m, count, a.get() + k0 * kernel.tile_rows, whole.a_by_steps,
                              b.get() + j * piece.b_panel_words(), sums + j * columns, stride,
                              k0 > 0);
      }
      const int64_t j0 = first * columns;
      finish(kernel, q, 0, q.m, j0, std::min(last * columns, q.n) - j0, sums, stride);
    }
  };
  if (threads == 1) return body(0, items.count);
  parallel_for(0, items.count, 1, body);
}

void multiply_lines(const Product& q, int64_t threads) {
  static_assert(piece_k == dots_piece);
  const Packing p(kernels(), false, q.k);
  Scratch<uint32_t> a(static_cast<size_t>(q.m * q.k));
  round_lines(q.a, a.get());
  const MxConstants b_mx = mx_constants(q.b.rounding.mx);
  const Elementwise rounds = elementwise(q.b.rounding.kind);
  const float* rows = reinterpret_cast<const float*>(a.get());
  constexpr int64_t each = 64, lines = 16;
  // Columns [j, j + count), rounded in blocks.
  const auto add_mx = [&](int64_t j, int64_t count, float* sums) {
    uint32_t words[lines * piece_k];
    for (int64_t k0 = 0; k0 < q.k; k0 += piece_k) {
      const int64_t live = std::min(piece_k, q.k - k0);
      for (int64_t e = 0; e < count; ++e)
        round_line(p, q.b, b_mx, j + e, k0, live, words + e * piece_k);
      p.kernel->dots(q.m, count, live, rows + k0, q.k, Elementwise::none, DType::float32, words,
                     piece_k, sums, each);
    }
  };
  const auto body = [&](int64_t lo, int64_t hi) {
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t j0 = item * each, columns = std::min(each, q.n - j0);
      float sums[most_dots * each] = {};
      if (!q.b.is_mx())
        p.kernel->dots(q.m, columns, q.k, rows, q.k, rounds, q.b.dtype, q.b.at(j0, 0),
                       q.b.line_stride, sums, each);
      for (int64_t j = 0; q.b.is_mx() && j < columns; j += lines)
        add_mx(j0 + j, std::min(lines, columns - j), sums + j);
      finish(*p.kernel, q, 0, q.m, j0, columns, sums, each);
    }
  };
  if (threads == 1) return body(0, ceil_div(q.n, each));
  parallel_for(0, ceil_div(q.n, each), 1, body);
}

}  // namespace trn::numerics
