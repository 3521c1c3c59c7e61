// See packed.h. Sums in the order of gemm: float32 where one tile holds all rows, else pairs.
#include "packed.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <optional>

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

  static Left empty(const Lines& a, bool pairs) {
    const Packing p(kernels(), pairs, a.k, packs_a_across(a));
    return {p, Scratch<uint32_t>(static_cast<size_t>(panels(p, a) * p.a_panel_words()))};
  }

  static Left of(const Lines& a, bool pairs) {
    Left left = empty(a, pairs);
    // Lines may be few: threads share the k's of all of them.
    std::atomic<bool> subnormal = false;
    parallel_for(0, ceil_div(a.k, k_at_once), worth_a_thread(a.count), [&](int64_t lo, int64_t hi) {
      const int64_t k0 = lo * k_at_once;
      if (left.pack(a, k0, std::min(hi * k_at_once, a.k) - k0)) subnormal = true;
    });
    if (pairs && subnormal) return of(a, false);
    return left;
  }

  // As pack_a, k [k0, k0 + count).
  bool pack(const Lines& a, int64_t k0, int64_t count) const {
    uint32_t* to = words.get() + packing.words(k0) * packing.tile_rows;
    return pack_a(packing, a.part(k0, count), 0, panels(packing, a), to);
  }

  static int64_t panels(const Packing& p, const Lines& a) { return ceil_div(a.count, p.tile_rows); }
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

// A left operand of m rows.
Lines lines_of(int64_t m, int64_t k, const Operand& a) {
  const auto* data = static_cast<const char*>(a.data);
  return {data, a.dtype, m, k, a.row_stride, a.col_stride, 0, 0, a.rounding};
}

Lines contiguous_lines(int64_t m, int64_t k, const float* a, const OperandRounding& rounding) {
  return lines_of(m, k, {a, DType::float32, k, 1, rounding, 0});
}

bool by_pairs(const Lines& lines) {
  const Kernels& kernel = kernels();
  return lines.count > kernel.tile_rows && kernel.gemm_bf16 != nullptr && fits_bf16(lines);
}

Left left_of(const Lines& lines) { return Left::of(lines, by_pairs(lines)); }

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
  const Left left = left_of(lines_of(m, k, a));
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

struct PackedLeft::Parts {
  Lines lines;
  Left left;
  std::atomic<bool> subnormal = false;
};

PackedLeft::PackedLeft(int64_t m, int64_t k, const OperandRounding& rounding) {
  const Lines lines = contiguous_lines(m, k, nullptr, rounding);
  parts_.reset(new Parts{lines, Left::empty(lines, by_pairs(lines))});
}

PackedLeft::~PackedLeft() = default;

void PackedLeft::pack(const float* a, int64_t k0, int64_t count) {
  const IeeeScope scope;
  Lines lines = parts_->lines;
  lines.data = reinterpret_cast<const char*>(a);
  if (parts_->left.pack(lines, k0, count)) parts_->subnormal = true;
}

namespace {

// multiply(columns first, last, sums), whose rows are `last - first` apart, for each gate of the
// units of a thread, and then(units).
template <class Multiply>
void by_units(GateColumns shape, float* c, const Multiply& multiply, const ThenUnits& then) {
  const int64_t step = unit_step();
  const int64_t each = ceil_div(ceil_div(shape.width, step), int64_t{num_threads()}) * step;
  const auto body = [&](int64_t lo, int64_t hi) {
    const int64_t from = lo * each, to = std::min(hi * each, shape.width);
    for (int64_t gate = 0; gate < shape.gates; ++gate) {
      const IeeeScope scope;
      const int64_t column = gate * shape.width;
      multiply(column + from, column + to, c + shape.m * (shape.gates * from + gate * (to - from)));
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

}  // namespace

void GateProduct::run(const float* a, PackedLeft* packed, const ThenUnits& then) const {
  std::optional<Left> made;
  if (packed == nullptr || packed->parts_->subnormal.exchange(false)) {
    const IeeeScope scope;
    made.emplace(left_of(contiguous_lines(shape.m, k, a, rounding)));
  }
  const Left& left = made ? *made : packed->parts_->left;
  const int64_t columns = kernels().panel_columns;
  by_units(
      shape, c,
      [&](int64_t first, int64_t last, float* sums) {
        multiply_item(left, shape.m, b, first / columns, last / columns, sums, last - first);
      },
      then);
}

void GateDots::run(const float* a, const ThenUnits& then) const {
  Scratch<uint32_t> words(static_cast<size_t>(shape.m * k));
  {
    const IeeeScope scope;
    round_lines(contiguous_lines(shape.m, k, a, rounding), words.get());
  }
  const float* rows = reinterpret_cast<const float*>(words.get());
  const auto dots = kernels().dots;
  by_units(
      shape, c,
      [&](int64_t first, int64_t last, float* sums) {
        const int64_t units = last - first;
        std::fill_n(sums, shape.m * units, 0.0f);
        dots(shape.m, units, k, rows, k, Elementwise::none, DType::bfloat16, b + first * k, k, sums,
             units);
      },
      then);
}

}  // namespace trn::numerics
