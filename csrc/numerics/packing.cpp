// Rounds operands into panels: along lines of k, or across them, whichever is contiguous.
#include "packing.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace trn::numerics {
namespace {

// Rounds 32 or fewer k's of `width` neighbouring lines (line_stride 1).
bool round_across(const Packing& p, const Lines& x, const MxConstants& mx, int64_t line,
                  int64_t width, int64_t k0, const ColumnDestination& d) {
  const void* rows[32];
  uint64_t indices[32];
  for (int64_t i = 0; i < 32; ++i) {
    rows[i] = k0 + i < x.k ? x.at(line, k0 + i) : nullptr;
    indices[i] = x.index(line, k0 + i);
  }
  if (x.is_mx())
    return p.kernel->mx_columns(mx, x.dtype, rows, indices, width, Grouping::contiguous,
                                p.column_output(), d, nullptr);
  return p.kernel->round_columns(elementwise(x.rounding.kind), x.dtype, rows,
                                 std::min<int64_t>(32, x.k - k0), width, p.column_output(), d);
}

// Words of neighbouring lines, a row of `block` for each step, to panels of `rows` lines by steps.
template <int64_t rows>
void spread(const uint32_t* block, int64_t stride, int64_t steps, int64_t panels, uint32_t* words,
            int64_t panel_words) {
  for (int64_t s = 0; s < steps; ++s)
    for (int64_t i = 0; i < panels; ++i)
      std::memcpy(words + i * panel_words + s * rows, block + s * stride + i * rows,
                  rows * sizeof(uint32_t));
}

// The same to panels as the packing keeps them.
void place(const Packing& p, const uint32_t* block, int64_t stride, int64_t steps, int64_t panels,
           uint32_t* words) {
  const int64_t rows = p.tile_rows, panel_words = p.a_panel_words();
  if (p.a_by_steps)
    return (rows == 12 ? spread<12> : spread<6>)(block, stride, steps, panels, words, panel_words);
  for (int64_t i = 0; i < panels; ++i)
    for (int64_t s = 0; s < steps; s += 16)
      p.kernel->transpose(block + s * stride + i * rows, stride, std::min<int64_t>(16, steps - s),
                          rows, words + i * panel_words + s * rows, 16);
}

// Steps of k at a time: a panel of b and a tile of a stay in the first-level cache.
constexpr int64_t steps_at_once = 256;

// Lines that can be rounded as one of at most `most` k's, with the same blocks: a short line takes
// as long to begin with as to round.
int64_t lines_at_once(const Lines& x, int64_t most) {
  const bool follow = x.k_stride == 1 && x.line_stride == x.k && x.k % 32 == 0 && x.k > 0;
  const bool in_any_order = x.rounding.mx.rounding.mode == RoundingMode::nearest_even;
  return follow && in_any_order ? std::max<int64_t>(1, most / x.k) : 1;
}

}  // namespace

Elementwise elementwise(OperandRounding::Kind kind) {
  switch (kind) {
    case OperandRounding::Kind::bfloat16:
      return Elementwise::bfloat16;
    case OperandRounding::Kind::tfloat32:
      return Elementwise::tfloat32;
    case OperandRounding::Kind::none:
    case OperandRounding::Kind::mx:
      break;
  }
  return Elementwise::none;
}

bool round_line(const Packing& p, const Lines& x, const MxConstants& mx, int64_t line, int64_t k0,
                int64_t count, uint32_t* words) {
  uint32_t gathered[piece_k];
  const void* from = x.at(line, k0);
  if (x.k_stride != 1) {
    const int64_t size = static_cast<int64_t>(size_of(x.dtype));
    for (int64_t i = 0; i < count; ++i) {
      if (size == 4)
        gathered[i] = *reinterpret_cast<const uint32_t*>(x.at(line, k0 + i));
      else
        reinterpret_cast<uint16_t*>(gathered)[i] =
            *reinterpret_cast<const uint16_t*>(x.at(line, k0 + i));
    }
    from = gathered;
  }
  if (p.pairs && count % 2 == 1) words[count / 2] = 0;
  if (!x.is_mx())
    return p.kernel->round_row(elementwise(x.rounding.kind), x.dtype, from, count, p.row_output(),
                               words);
  return p.kernel->mx_row(mx, x.dtype, from, count, x.index(line, k0), p.row_output(), words,
                          nullptr);
}

int64_t second_level_cache_bytes() {
  constexpr int64_t least = 256 << 10;
#ifdef _SC_LEVEL2_CACHE_SIZE
  return std::max<int64_t>(least, sysconf(_SC_LEVEL2_CACHE_SIZE));
#else
  return least;
#endif
}

bool fits_bf16(const Lines& x) {
  return x.dtype == DType::bfloat16 || x.rounding.kind == OperandRounding::Kind::bfloat16 ||
         x.is_mx();
}

bool pack_a(const Packing& p, const Lines& a, int64_t first, int64_t last, uint32_t* words) {
  const int64_t tile_rows = p.tile_rows, panel_words = p.a_panel_words();
  const MxConstants mx = mx_constants(a.rounding.mx);
  const int64_t line0 = first * tile_rows, line_end = std::min(last * tile_rows, a.count);
  bool subnormal = false;

  if (packs_a_across(a)) {
    constexpr int64_t strip = 128;
    const int64_t panels = strip / tile_rows;
    uint32_t block[32 * strip] = {};
    for (int64_t k0 = 0; k0 < a.k; k0 += 32) {
      const int64_t block_words = p.words(std::min<int64_t>(32, a.k - k0));
      for (int64_t line = line0; line < line_end; line += panels * tile_rows) {
        const int64_t width = std::min(panels * tile_rows, line_end - line);
        subnormal |= round_across(p, a, mx, line, width, k0, {block, strip, 0, 0});
        uint32_t* to = words + (line - line0) / tile_rows * panel_words + p.words(k0) * tile_rows;
        place(p, block, strip, block_words, ceil_div(width, tile_rows), to);
      }
    }
    return subnormal;
  }

  uint32_t piece[piece_k];
  const int64_t together = lines_at_once(a, piece_k);
  for (int64_t line = line0; line < line_end; line += together) {
    const int64_t lines = std::min(together, line_end - line);
    for (int64_t k0 = 0; k0 < a.k; k0 += piece_k) {
      const int64_t count = std::min(piece_k, a.k - k0), n = p.words(count);
      subnormal |= round_line(p, a, mx, line, k0, lines * count, piece);
      for (int64_t i = 0; i < lines; ++i) {
        const int64_t at = line - line0 + i;
        uint32_t* to =
            words + at / tile_rows * panel_words + at % tile_rows * 16 + p.words(k0) * tile_rows;
        const uint32_t* from = piece + i * n;
        int64_t w = 0;
        for (; w + 16 <= n; w += 16) std::copy_n(from + w, 16, to + w * tile_rows);
        std::copy_n(from + w, n - w, to + w * tile_rows);
      }
    }
  }
  return subnormal;
}

bool pack_b(const Packing& p, const Lines& b, int64_t first, int64_t last, uint32_t* words) {
  const int64_t columns = p.kernel->panel_columns, panel_words = p.b_panel_words();
  const MxConstants mx = mx_constants(b.rounding.mx);
  const int64_t line0 = first * columns, line_end = std::min(last * columns, b.count);
  bool subnormal = false;

  if (packs_b_across(b)) {
    for (int64_t k0 = 0; k0 < b.k; k0 += 32)
      subnormal |= round_across(p, b, mx, line0, line_end - line0, k0,
                                {words + p.words(k0) * columns, columns, columns, panel_words});
    return subnormal;
  }

  constexpr int64_t piece = 256, most_columns = 32;
  uint32_t lines[most_columns * piece];
  const int64_t together = lines_at_once(b, piece);
  const int64_t line_words = p.words(together > 1 ? b.k : piece);
  for (int64_t line = line0; line < line_end; line += columns) {
    uint32_t* panel = words + (line - line0) / columns * panel_words;
    const int64_t live = std::min(columns, line_end - line);
    std::fill(lines + live * line_words, lines + columns * line_words, 0u);
    for (int64_t k0 = 0; k0 < b.k; k0 += piece) {
      const int64_t count = std::min(piece, b.k - k0);
      for (int64_t i = 0; i < live; i += together)
        subnormal |= round_line(p, b, mx, line + i, k0, std::min(together, live - i) * count,
                                lines + i * line_words);
      p.kernel->transpose(lines, line_words, columns, p.words(count), panel + p.words(k0) * columns,
                          columns);
    }
  }
  return subnormal;
}

void round_lines(const Lines& x, uint32_t* words) {
  const Packing p(kernels(), false, x.k);
  const MxConstants mx = mx_constants(x.rounding.mx);
  for (int64_t line = 0; line < x.count; ++line)
    for (int64_t k0 = 0; k0 < x.k; k0 += piece_k)
      round_line(p, x, mx, line, k0, std::min(piece_k, x.k - k0), words + line * x.k + k0);
}

void multiply_panels(const Packing& p, int64_t rows, const uint32_t* a, int64_t a_panel_words,
                     int64_t panels, const uint32_t* b, int64_t b_panel_words, float* c,
                     int64_t ldc, bool accumulate) {
  const Kernels::GemmRun run = p.pairs ? p.kernel->gemm_bf16 : p.kernel->gemm_float32;
  const int64_t tile_rows = p.tile_rows, columns = p.kernel->panel_columns;
  const PairProducts scope(p);
  for (int64_t s = 0; s < p.steps; s += steps_at_once) {
    const int64_t steps = std::min(steps_at_once, p.steps - s);
    for (int64_t j = 0; j < panels; ++j)
      for (int64_t i = 0; i < rows; i += tile_rows)
        run(std::min(tile_rows, rows - i), steps, a + i / tile_rows * a_panel_words + s * tile_rows,
            p.a_by_steps, b + j * b_panel_words + s * columns, c + i * ldc + j * columns, ldc,
            accumulate || s > 0);
  }
}

}  // namespace trn::numerics
