// How values of each dtype combine: float32 in rank order and one rounding at the end for the
// formats below it, the dtype itself for float64 and integers. Chosen: the chip adds in float32 and
// rounds at each hop, in an order that is not published.
#pragma once

#include "collectives/transport.h"

#include <c10/core/ScalarType.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

namespace trn {

// The reduction for tensors of `dtype`; complex ones are passed as their real dtype, with twice the
// elements. Throws ValueError for what cannot be added.
collectives::Reduction reduction(const c10d::ReduceOp& op, c10::ScalarType dtype, int ranks,
                                 std::vector<double> factors);

const char* name_of(c10d::ReduceOp::RedOpType op);

}  // namespace trn
