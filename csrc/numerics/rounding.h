// Random bits for stochastic rounding: a counter-based generator, so that a result depends on
// (seed, offset, element index) and never on threads or vector width.
// [philox] Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11: Philox4x32-10.
// [neuron] NEURON_RT_STOCHASTIC_ROUNDING_EN / _SEED; the chip's own source of bits is not
// documented.
#pragma once

#include <cstdint>

#include "formats.h"

namespace trn::numerics {

// words[i] belongs to element first + i.
void random_words(uint64_t seed, uint64_t offset, uint64_t first, int64_t count, uint32_t* words);

// The device's output cast: float32 to bfloat16, float16 or 8-bit codes, stochastically.
// The same as `convert` and `encode` of formats.h with RoundingMode::stochastic.

}  // namespace trn::numerics
