// How results are rounded to 16-bit formats on their way out of an engine: to nearest even, or
// stochastically (NEURON_RT_STOCHASTIC_ROUNDING_EN).
#pragma once

#include "numerics/formats.h"

namespace trn {

// At configuration, before the first kernel.
void set_stochastic_rounding(bool enabled, uint64_t seed);
bool stochastic_rounding() noexcept;

// The rounding of the next result: a fresh offset for each call, in the order of the calls.
numerics::Rounding next_rounding() noexcept;
void restart_rounding(uint64_t seed) noexcept;  // the sequence again from its beginning

}  // namespace trn
