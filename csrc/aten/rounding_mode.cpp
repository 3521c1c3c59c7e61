// See rounding_mode.h.
#include "rounding_mode.h"

#include <atomic>

namespace trn {
namespace {
bool enabled = false;
uint64_t seed = 0;
std::atomic<uint64_t> offset{0};
}  // namespace

void set_stochastic_rounding(bool on, uint64_t from_seed) {
  enabled = on;
  restart_rounding(from_seed);
}

void restart_rounding(uint64_t from_seed) noexcept {
  seed = from_seed;
  offset = 0;
}

bool stochastic_rounding() noexcept { return enabled; }

numerics::Rounding next_rounding() noexcept {
  if (!enabled) return {};
  return {numerics::RoundingMode::stochastic, seed, offset.fetch_add(1)};
}

}  // namespace trn
