// A whole operand rounded to bfloat16, for products that read it again and again.
#pragma once

#include "gemm.h"

namespace trn::numerics {

// x [rows, cols], whose rows or columns are contiguous, rounded once to bfloat16 values in the same
// order; blocks of MX run along `k_axis`. gemm with what is written, not rounded, gives every bit
// that it gives with x. False, and nothing of use, where that is not so: values that are no
// bfloat16, blocks so small that their values may be subnormal, blocks that are not contiguous.
bool round_operand(int64_t rows, int64_t cols, const Operand& x, int k_axis, void* bfloat16);

}  // namespace trn::numerics
