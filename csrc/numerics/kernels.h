// Internal: the vector kernels, one table for each instruction set. The *-inl.h files are the
// source of every table; kernels_<isa>.cpp compiles them for one instruction set.
#pragma once

#include <cstdint>

#include "formats.h"
#include "mx.h"
#include "stored.h"

namespace trn::numerics {

enum class Output : uint8_t {
  codes8,  // one code a byte
  codes4,  // two codes a byte along the blocked axis
  float32,
  bfloat16,
  float16,
  bf16_pairs,  // columns only: rows 2i and 2i + 1 as the low and high half of 32-bit words
};

// A scale rule and an element format as the constants of the inner loops.
struct MxConstants {
  // code = max(((bits(a * scale_factor) + scale_round) >> 23) - scale_subtract, 0)
  float scale_factor;
  uint32_t scale_round;
  int32_t scale_subtract;
  // of the element format, as float32 bits where they are limits
  int32_t mantissa_shift;  // 23 - mantissa_bits
  uint32_t min_normal_bits;
  uint32_t max_bits;
  uint32_t nan_code;
  uint32_t sign_shift;  // from bit 31 to the code's sign
  bool through_bf16;
  bool stochastic;
  uint64_t seed, offset;
};

MxConstants mx_constants(const MxSpec& spec);

enum class Elementwise : uint8_t { none, bfloat16, tfloat32 };

// Where a strip of columns goes. The strip is cut into panels of panel_width columns when that is
// not 0: panel p starts at base + p * panel_stride.
struct ColumnDestination {
  void* base;
  int64_t row_stride;   // in outputs (codes4: bytes; bf16_pairs: words per pair of rows)
  int64_t panel_width;  // 0: one panel; else a multiple of `lanes`, the last one padded with zeros
  int64_t panel_stride;
};

constexpr int64_t most_dots = 4;
constexpr int64_t dots_piece = 512;   // of k, after which `dots` adds up
constexpr int64_t piece_blocks = 16;  // `dots` of columns in MX add up after as many
constexpr int64_t stored_columns = 16;
constexpr int64_t tap_rows = 32;

struct Kernels {
  int64_t lanes;

  void (*encode)(FloatFormat, const float*, uint8_t*, int64_t, Overflow, Rounding, uint64_t index);
  void (*decode)(FloatFormat, const uint8_t*, float*, int64_t);
  void (*round_to)(FloatFormat, const float*, float*, int64_t, Overflow, Rounding, uint64_t index);
  void (*convert)(DType, const void*, DType, void*, int64_t, Rounding, uint64_t index);
  void (*random_words)(uint64_t seed, uint64_t offset, uint64_t first, int64_t count, uint32_t*);

  // One contiguous row of `count`, in contiguous blocks. scales may be null. Like all that write
  // values, returns whether one may be subnormal in float32.
  bool (*mx_row)(const MxConstants&, DType, const void* x, int64_t count, uint64_t index, Output,
                 void* y, uint8_t* scales);
  // One block down `width` columns: row i of the block starts at rows[i] (null: padding, not
  // written) and has element index indices[i]. Row i goes to row i of the destination, or in the
  // wrapped grouping to i / 8 * 128 + i % 8. scales may be null.
  bool (*mx_columns)(const MxConstants&, DType, const void* const* rows, const uint64_t* indices,
                     int64_t width, Grouping, Output, const ColumnDestination&, uint8_t* scales);
  // One code a byte; y[i] = value of codes[i] * scales[i].
  void (*mx_decode_row)(FloatFormat, const uint8_t* codes, const float* scales, int64_t count,
                        DType out, void* y);
  // Codes of whole blocks in a row, at most piece_blocks of them: y[32 * i + j] is a value by the
  // scale of block i.
  void (*mx_widen)(FloatFormat, const uint8_t* codes, const uint8_t* scales, int64_t blocks,
                   float* y);

  // Elementwise instead of in blocks, for matmul operands: out is float32 or bfloat16, and float32
  // or bf16_pairs. Rows are as for mx_columns, `count` of them.
  bool (*round_row)(Elementwise, DType, const void* x, int64_t count, Output, void* y);
  bool (*round_columns)(Elementwise, DType, const void* const* rows, int64_t count, int64_t width,
                        Output, const ColumnDestination&);

  // 32-bit words: dst[j * dst_stride + i] = src[i * src_stride + j].
  void (*transpose)(const uint32_t* src, int64_t src_stride, int64_t rows, int64_t cols,
                    uint32_t* dst, int64_t dst_stride);

  // y[i] = alpha * sums[i] + beta * addend[i * addend_stride], rounded once. addend may be null.
  void (*finish_row)(const float* sums, int64_t count, float alpha, float beta, DType addend_dtype,
                     const void* addend, int64_t addend_stride, DType out, void* y, Rounding,
                     uint64_t index);

  // Rows of attention scores, see attention-inl.h.
  float (*scale_scores)(float* scores, int64_t count, float scale, const float* added);
  float (*exponentiate)(float* scores, int64_t count, int64_t padded, float shift);
  void (*softmax_backward)(const float* p, float* gradients, int64_t padded, float d);

  // sums[r * stride + j] += the product of row r of a and line j of b, which lie ldb elements apart
  // and are rounded on the way, along `count`, dots_piece at a time; at most most_dots rows.
  void (*dots)(int64_t rows, int64_t columns, int64_t count, const float* a, int64_t lda,
               Elementwise, DType, const void* b, int64_t ldb, float* sums, int64_t stride);
  // sums[r * stored_columns + j] += the product of row r of a and column j of b, as mx_widen and
  // `dots` of piece_blocks at a time give it, for at most stored_columns columns and most_dots
  // rows. False, and sums are of no use, where a code or scale is no number or nearly too large;
  // null where nothing is faster than these two.
  bool (*stored_dots)(const StoredMx& b, int64_t columns, int64_t blocks, int64_t rows,
                      const float* a, int64_t lda, float* sums);
  // Columns of b, at most panel_columns, as a packed panel of 32 * blocks k's in float32, whose
  // other columns are zero. False, and null, as for stored_dots.
  bool (*stored_panel)(const StoredMx& b, int64_t columns, int64_t blocks, uint32_t* panel);

  // Matmul microkernels: c[rows, panel_columns] (+)= a * b in float32. A step is one k in float32
  // words, two in bf16_pairs. A packed panel of A is [steps / 16][tile_rows][16] words, or
  // [steps][tile_rows] where it is kept by steps; one of B is [steps][panel_columns].
  using GemmRun = void (*)(int64_t rows, int64_t steps, const uint32_t* a, bool a_by_steps,
                           const uint32_t* b, float* c, int64_t ldc, bool accumulate);
  int64_t panel_columns;
  int64_t tile_rows;
  int64_t pair_tile_rows;  // of gemm_bf16, which may
  bool pairs_by_steps;     // read panels of a by steps
  GemmRun gemm_float32;
  GemmRun gemm_of_pairs;  // a step is one k: words of a are float32, those of b bf16_pairs
  GemmRun gemm_bf16;      // null where the instruction set has no such product
  // As gemm_bf16 where b is not packed: for each of `taps`, step s of its panel_columns columns
  // begins at b + offsets[tap] + s * b_stride, and a has a panel of `steps`, a multiple of 16, and
  // of tap_rows rows. Panels of a follow each other. Null where gemm_bf16 is.
  void (*gemm_taps)(int64_t rows, int64_t taps, const int64_t* offsets, int64_t steps,
                    const uint32_t* a, const uint32_t* b, int64_t b_stride, float* c, int64_t ldc,
                    bool accumulate);
  // Around calls of gemm_bf16 and gemm_taps in one thread; null where there is nothing to do.
  void (*begin_bf16)();
  void (*end_bf16)();
};

const Kernels& kernels();  // of the current instruction set

namespace plain {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
void gemm_bf16(int64_t rows, int64_t steps, const uint32_t* a, bool a_by_steps, const uint32_t* b,
               float* c, int64_t ldc, bool accumulate);
void gemm_taps(int64_t rows, int64_t taps, const int64_t* offsets, int64_t steps, const uint32_t* a,
               const uint32_t* b, int64_t b_stride, float* c, int64_t ldc, bool accumulate);
}  // namespace avx512_bf16
namespace amx_bf16 {
constexpr int64_t tile_rows = 32;
void begin();
void end();
void gemm_bf16(int64_t rows, int64_t steps, const uint32_t* a, bool a_by_steps, const uint32_t* b,
               float* c, int64_t ldc, bool accumulate);
void gemm_taps(int64_t rows, int64_t taps, const int64_t* offsets, int64_t steps, const uint32_t* a,
               const uint32_t* b, int64_t b_stride, float* c, int64_t ldc, bool accumulate);
}  // namespace amx_bf16
#endif

}  // namespace trn::numerics
