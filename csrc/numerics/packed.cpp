// See packed.h. Sums in the order of gemm: float32 where one tile holds all rows, else pairs.
#include "packed.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "kernels.h"
#include "packing.h"
#include "parallel.h"
#include "scratch.h"

namespace trn::numerics {
namespace {

constexpr int64_t pairs_at_once =
    256;  // a panel of b and a tile of a stay in the first-level cache
constexpr int64_t item_columns = 256;

// Of the left operand: whole blocks and panels' steps. As many as take about 2 us (chosen).
constexpr int64_t k_at_once = 256;
int64_t worth_a_thread(int64_t lines) {
  constexpr int64_t elements = 4096;
  return ceil_div(elements, std::max<int64_t>(1, lines * k_at_once));
}

// The left operand, packed whole: pairs for the bfloat16 dot product, or float32 words.
struct Left {
  Packing packing;
  Scratch<uint32_t> words;

  static Left of(const Lines& a, bool pairs) {
    const Packing p(kernels(), pairs, a.k, packs_a_across(a));
    const int64_t panels = ceil_div(a.count, p.tile_rows);
    Scratch<uint32_t> words(static_cast<size_t>(panels * p.a_panel_words()));
    // Lines may be few: threads share the k's of all of them.
    std::atomic<bool> subnormal = false;
    parallel_for(0, ceil_div(a.k, k_at_once), worth_a_thread(a.count), [&](int64_t lo, int64_t hi) {
      const int64_t k0 = lo * k_at_once, k = std::min(hi * k_at_once, a.k) - k0;
      if (pack_a(p, a.part(k0, k), 0, panels, words.get() + p.words(k0) * p.tile_rows))
        subnormal = true;
    });
    if (pairs && subnormal) return of(a, false);
    return {p, std::move(words)};
  }
};

// sums [m, panels * panel_columns], whose rows are `ldc` apart, = a * panels [first, last) of b.
void multiply_item(const Left& a, int64_t m, const uint32_t* b, int64_t first, int64_t last,
                   float* sums, int64_t ldc) {
  const Packing& p = a.packing;
  const Packing of_b(*p.kernel, true, p.k);
  const Kernels::GemmRun run = p.pairs ? p.kernel->gemm_bf16 : p.kernel->gemm_of_pairs;
  const int64_t rows = p.tile_rows, columns = p.kernel->panel_columns;
  const int64_t steps_a_pair = p.pairs ? 1 : 2;
  const PairProducts scope(p);
  for (int64_t pair = 0; pair < of_b.steps; pair += pairs_at_once) {
    const int64_t s = pair * steps_a_pair;
    const int64_t steps = std::min(pairs_at_once * steps_a_pair, p.steps - s);
    for (int64_t j = first; j < last; ++j)
      for (int64_t i = 0; i < m; i += rows)
        run(std::min(rows, m - i), steps, a.words.get() + i / rows * p.a_panel_words() + s * rows,
            p.a_by_steps, b + j * of_b.b_panel_words() + pair * columns,
            sums + i * ldc + (j - first) * columns, ldc, pair > 0);
  }
}

// A left operand of m rows, as contiguous lines.
Left left_of(int64_t m, int64_t k, const Operand& a) {
  const Lines lines{static_cast<const char*>(a.data),
                    a.dtype,
                    m,
                    k,
                    a.row_stride,
                    a.col_stride,
                    0,
                    0,
                    a.rounding};
  const Kernels& kernel = kernels();
  return Left::of(lines, m > kernel.tile_rows && kernel.gemm_bf16 != nullptr && fits_bf16(lines));
}

const char* element(const void* data, DType dtype, int64_t at) {
  return static_cast<const char*>(data) + at * static_cast<int64_t>(size_of(dtype));
}

}  // namespace

int64_t packed_words(int64_t k, int64_t n) {
  return ceil_div(n, kernels().panel_columns) * Packing(kernels(), true, k).b_panel_words();
}

int64_t packed_columns() { return kernels().panel_columns; }

bool is_packable(const OperandRounding& rounding) {
  return rounding.kind != OperandRounding::Kind::mx ||
         (rounding.mx.grouping == Grouping::contiguous &&
          rounding.mx.rounding.mode == RoundingMode::nearest_even);
}

bool pack_matrix(int64_t k, int64_t n, const Operand& b, uint32_t* words) {
  const Lines lines{static_cast<const char*>(b.data),
                    b.dtype,
                    n,
                    k,
                    b.col_stride,
                    b.row_stride,
                    0,
                    0,
                    b.rounding};
  if (!is_packable(b.rounding) || !fits_bf16(lines)) return false;
  const Packing p(kernels(), true, k);
  std::atomic<bool> subnormal = false;
  parallel_for(0, ceil_div(n, p.kernel->panel_columns), 1, [&](int64_t lo, int64_t hi) {
    if (pack_b(p, lines, lo, hi, words + lo * p.b_panel_words())) subnormal = true;
  });
  return !subnormal;
}

void gemm_packed(int64_t m, int64_t n, int64_t k, const Operand& a, const uint32_t* b,
                 const Result& c, float alpha, float beta, const Addend& addend) {
  const IeeeScope scope;
  const Kernels& kernel = kernels();
  const Left left = left_of(m, k, a);
  const int64_t columns = kernel.panel_columns, panels = ceil_div(n, columns);
  const int64_t each = std::max<int64_t>(
      1, std::min(item_columns / columns, ceil_div(panels, int64_t{num_threads()})));
  const bool adds = addend.data != nullptr && beta != 0;
  parallel_for(0, ceil_div(panels, each), 1, [&](int64_t lo, int64_t hi) {
    Scratch<float> sums(static_cast<size_t>(m * each * columns));
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t first = item * each, last = std::min(first + each, panels);
      multiply_item(left, m, b, first, last, sums.get(), (last - first) * columns);
      const int64_t j0 = first * columns, count = std::min(last * columns, n) - j0;
      for (int64_t i = 0; i < m; ++i)
        kernel.finish_row(
            sums.get() + i * (last - first) * columns, count, alpha, beta, addend.dtype,
            adds
                ? element(addend.data, addend.dtype, i * addend.row_stride + j0 * addend.col_stride)
                : nullptr,
            addend.col_stride, c.dtype,
            const_cast<char*>(element(c.data, c.dtype, i * c.row_stride + j0)), c.rounding,
            static_cast<uint64_t>(i * n + j0));
    }
  });
}

int64_t unit_step() {
  constexpr int64_t of_host = 64;  // elements in a step of the host's element-wise loops (chosen)
  return std::lcm(of_host, kernels().panel_columns);
}

void gemm_packed_gates(GateColumns shape, int64_t k, const Operand& a, const uint32_t* b, float* c,
                       const std::function<void(int64_t, int64_t)>& then) {
  const Left left = [&] {
    const IeeeScope scope;
    return left_of(shape.m, k, a);
  }();
  const int64_t columns = kernels().panel_columns, step = unit_step();
  const int64_t each = ceil_div(ceil_div(shape.width, step), int64_t{num_threads()}) * step;
  const auto body = [&](int64_t lo, int64_t hi) {
    const int64_t from = lo * each, to = std::min(hi * each, shape.width);
    for (int64_t gate = 0; gate < shape.gates; ++gate) {
      const IeeeScope scope;
      const int64_t column = gate * shape.width;
      multiply_item(left, shape.m, b, (column + from) / columns, (column + to) / columns,
                    c + shape.m * (shape.gates * from + gate * (to - from)), to - from);
    }
    then(from, to);
  };
  detail::run_loop(
      0, ceil_div(shape.width, each), 1,
      [](void* context, int64_t lo, int64_t hi) {
        (*static_cast<decltype(body)*>(context))(lo, hi);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace trn::numerics
