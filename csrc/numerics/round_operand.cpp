// See round_operand.h. Along k or across it, whichever is contiguous, by all threads.
#include "round_operand.h"

#include <atomic>

#include "packing.h"
#include "parallel.h"

namespace trn::numerics {
namespace {

// Contiguous along k: line after line.
bool along(const Kernels& kernel, const Lines& x, const MxConstants& mx, int64_t line,
           uint16_t* to) {
  if (x.is_mx())
    return kernel.mx_row(mx, x.dtype, x.at(line, 0), x.k, 0, Output::bfloat16, to, nullptr);
  return kernel.round_row(elementwise(x.rounding.kind), x.dtype, x.at(line, 0), x.k,
                          Output::bfloat16, to);
}

// Contiguous across k: a block of k's of all lines at a time.
bool across(const Kernels& kernel, const Lines& x, const MxConstants& mx, int64_t block,
            uint16_t* to) {
  const void* rows[32];
  constexpr uint64_t indices[32] = {};
  const int64_t k0 = block * 32;
  for (int64_t i = 0; i < 32; ++i) rows[i] = k0 + i < x.k ? x.at(0, k0 + i) : nullptr;
  if (x.is_mx())
    return kernel.mx_columns(mx, x.dtype, rows, indices, x.count, Grouping::contiguous,
                             Output::bfloat16, {to + k0 * x.count, x.count, 0, 0}, nullptr);
  for (int64_t i = 0; i < 32 && k0 + i < x.k; ++i)
    kernel.round_row(elementwise(x.rounding.kind), x.dtype, rows[i], x.count, Output::bfloat16,
                     to + (k0 + i) * x.count);
  return false;
}

}  // namespace

bool round_operand(int64_t rows, int64_t cols, const Operand& x, int k_axis, void* bfloat16) {
  const bool k_is_rows = k_axis == 0;
  const Lines lines{static_cast<const char*>(x.data),
                    x.dtype,
                    k_is_rows ? cols : rows,
                    k_is_rows ? rows : cols,
                    k_is_rows ? x.col_stride : x.row_stride,
                    k_is_rows ? x.row_stride : x.col_stride,
                    0,
                    0,
                    x.rounding};
  const bool plain_mx = lines.is_mx() && x.rounding.mx.grouping == Grouping::contiguous &&
                        x.rounding.mx.rounding.mode == RoundingMode::nearest_even;
  const bool to_bf16 =
      x.rounding.kind == OperandRounding::Kind::bfloat16 && x.dtype == DType::float32;
  const bool runs_along = lines.k_stride == 1 && lines.line_stride == lines.k;
  const bool runs_across = lines.line_stride == 1 && lines.k_stride == lines.count;
  if (!(plain_mx || to_bf16) || !(runs_along || runs_across)) return false;

  const Kernels& kernel = kernels();
  const MxConstants mx = mx_constants(x.rounding.mx);
  auto* to = static_cast<uint16_t*>(bfloat16);
  std::atomic<bool> small = false;
  const int64_t items = runs_along ? lines.count : ceil_div(lines.k, 32);
  parallel_for(0, items, 8, [&](int64_t lo, int64_t hi) {
    bool any = false;
    for (int64_t i = lo; i < hi; ++i)
      any |= runs_along ? along(kernel, lines, mx, i, to + i * lines.k)
                        : across(kernel, lines, mx, i, to);
    if (any) small = true;
  });
  return to_bf16 || !small;
}

}  // namespace trn::numerics
