// Internal: matmul operands rounded into the panels that the microkernels read.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "kernels.h"

namespace trn::numerics {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One operand as lines of k: a line is a row of a, or a column of b.
struct Lines {
  const char* data;
  DType dtype;
  int64_t count, k;
  int64_t line_stride, k_stride;
  int64_t index_line_stride, index_k_stride;  // element indices, for stochastic rounding
  OperandRounding rounding;
  int64_t index_base = 0;

  const char* at(int64_t line, int64_t i) const {
    return data + (line * line_stride + i * k_stride) * static_cast<int64_t>(size_of(dtype));
  }
  uint64_t index(int64_t line, int64_t i) const {
    return static_cast<uint64_t>(index_base + line * index_line_stride + i * index_k_stride);
  }
  // k0 at a multiple of 32, so that blocks stay whole.
  Lines part(int64_t k0, int64_t length) const {
    Lines x = *this;
    x.data = at(0, k0);
    x.k = length;
    x.index_base += k0 * index_k_stride;
    return x;
  }
  bool is_mx() const { return rounding.kind == OperandRounding::Kind::mx; }
};

Elementwise elementwise(OperandRounding::Kind kind);

// Whether every rounded value is a bfloat16 (if it is no subnormal, which packing reports).
bool fits_bf16(const Lines& x);

// Packed words are float32, or bfloat16 pairs along k. Panels of a keep 16 steps of a line
// together, or where the operand is read across k, the lines of a step: neither has to be
// transposed.
struct Packing {
  const Kernels* kernel;
  bool pairs;
  int64_t k, steps;
  int64_t tile_rows;  // lines of a panel of a
  bool a_by_steps;

  Packing(const Kernels& kernels, bool bf16_pairs, int64_t length, bool by_steps = false)
      : kernel(&kernels),
        pairs(bf16_pairs),
        k(length),
        steps(words(length)),
        tile_rows(pairs ? kernels.pair_tile_rows : kernels.tile_rows),
        a_by_steps(by_steps && (!pairs || kernels.pairs_by_steps)) {}

  int64_t words(int64_t length) const { return pairs ? (length + 1) / 2 : length; }
  Output row_output() const { return pairs ? Output::bfloat16 : Output::float32; }
  Output column_output() const { return pairs ? Output::bf16_pairs : Output::float32; }
  // One cache line more than needed: panels a power of two apart would share cache sets.
  int64_t a_panel_words() const { return ceil_div(steps, 16) * 16 * tile_rows + 16; }
  int64_t b_panel_words() const { return steps * kernel->panel_columns + 16; }
  // Words of a step of one panel; for a by lines, of one in 16 steps on average.
  int64_t step_words(bool of_a) const { return of_a ? tile_rows : kernel->panel_columns; }
  // Where a panel of a holds step s of its line r.
  int64_t a_word(int64_t r, int64_t s) const {
    if (a_by_steps) return s * tile_rows + r;
    return s / 16 * 16 * tile_rows + r * 16 + s % 16;
  }
};

// Around the products of a packing in one thread.
class PairProducts {
 public:
  explicit PairProducts(const Packing& p) : kernel_(*p.kernel), begun_(p.pairs) {
    if (begun_ && kernel_.begin_bf16 != nullptr) kernel_.begin_bf16();
  }
  ~PairProducts() {
    if (begun_ && kernel_.end_bf16 != nullptr) kernel_.end_bf16();
  }
  PairProducts(const PairProducts&) = delete;
  PairProducts& operator=(const PairProducts&) = delete;

 private:
  const Kernels& kernel_;
  bool begun_;
};

// Whether packing reads several lines at a time, across k, or each line along it.
constexpr bool packs_a_across(const Lines& a) { return a.line_stride == 1 && a.k_stride != 1; }
constexpr bool packs_b_across(const Lines& b) { return b.line_stride == 1; }

// Panels [first, last) of a into words, panel after panel: [steps / 16][tile_rows][16], or
// [steps][tile_rows] by steps, which packs_a_across has to ask for. Both return whether a value may
// be subnormal in float32.
bool pack_a(const Packing& p, const Lines& a, int64_t first, int64_t last, uint32_t* words);

// Bytes of a core's second-level cache: at least 256 KiB, also where the system does not tell.
int64_t second_level_cache_bytes();

// Panels [first, last) of b into words, panel after panel: [steps][panel_columns].
bool pack_b(const Packing& p, const Lines& b, int64_t first, int64_t last, uint32_t* words);

// k [k0, k0 + count) of one line, rounded, as words of the packing in a row. `count` is at most
// piece_k; k0 and piece_k are whole blocks, wrapped ones too.
constexpr int64_t piece_k = 512;
bool round_line(const Packing& p, const Lines& x, const MxConstants& mx, int64_t line, int64_t k0,
                int64_t count, uint32_t* words);

// All lines, rounded, as float32 words [count, k].
void round_lines(const Lines& x, uint32_t* words);

// c[rows, panels * panel_columns] (+)= packed a * packed b, over the steps of the packing. Panels
// of both may have more of them: they are a_panel_words and b_panel_words apart.
void multiply_panels(const Packing& p, int64_t rows, const uint32_t* a, int64_t a_panel_words,
                     int64_t panels, const uint32_t* b, int64_t b_panel_words, float* c,
                     int64_t ldc, bool accumulate);

}  // namespace trn::numerics
