// A matrix of bfloat16 values in the panels that the microkernels read, packed once for many
// products with few rows. Half the bytes of float32 panels: kernels that need float32 widen them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "gemm.h"

namespace trn::numerics {

// Words of [k, n] in panels, and the columns of one: of the instruction set in use.
int64_t packed_words(int64_t k, int64_t n);
int64_t packed_columns();

// Whether an operand of this rounding may be packed: to nearest, in contiguous blocks.
bool is_packable(const OperandRounding& rounding);

// Packs b [k, n]. False where it is not packable, a value is no bfloat16, or may be a subnormal of
// float32: what was written is then of no use.
bool pack_matrix(int64_t k, int64_t n, const Operand& b, uint32_t* words);

// As gemm of one matrix with the packed b, bit for bit, where gemm would pack it too: m <= n, k >
// 0, and m > most_dots or b not contiguous along k. a is packable, c has contiguous rows.
void gemm_packed(int64_t m, int64_t n, int64_t k, const Operand& a, const uint32_t* b,
                 const Result& c, float alpha = 1.0f, float beta = 1.0f, const Addend& addend = {});

// The columns of a product of m rows are `width` units of each of several gates.
struct GateColumns {
  int64_t m, gates, width;
};

// Ranges of units begin and end at multiples of it, and the width has to be one.
int64_t unit_step();

using ThenUnits = std::function<void(int64_t lo, int64_t hi)>;

// A left operand [m, k] of contiguous lines, packed part by part by the threads that make it.
class PackedLeft {
 public:
  PackedLeft(int64_t m, int64_t k, const OperandRounding& rounding);
  ~PackedLeft();
  PackedLeft(const PackedLeft&) = delete;
  PackedLeft& operator=(const PackedLeft&) = delete;

  // Columns [k0, k0 + count) of a, float32, both whole steps of units: for the next product, which
  // needs all of them.
  void pack(const float* a, int64_t k0, int64_t count);

 private:
  friend struct GateProduct;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// c = a b, as gemm_packed, and then(lo, hi) for units [lo, hi) as soon as their columns of all
// gates are there: one loop, in which each thread has units of its own, the same at every call.
// They lie in c as [gates, m, hi - lo], from gates * m * lo on. a is contiguous float32; where it
// is packed already, it is not packed again.
struct GateProduct {
  GateColumns shape;
  int64_t k;
  OperandRounding rounding;
  const uint32_t* b;
  float* c;

  void run(const float* a, PackedLeft* packed, const ThenUnits& then) const;
};

// The same for m <= most_dots, with a b of rounded bfloat16 columns, contiguous along k: as gemm
// multiplies those.
struct GateDots {
  GateColumns shape;
  int64_t k;
  OperandRounding rounding;
  const uint16_t* b;
  float* c;

  void run(const float* a, const ThenUnits& then) const;
};

}  // namespace trn::numerics
